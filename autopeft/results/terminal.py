"""The leaderboard and the front as tables for a terminal.

A table knows how wide it may be only when it is printed: what does not fit is left out, the least important
column first, and the design wraps. Where the output is no terminal there are no lines and no colours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from autopeft.results.front import why_empty
from autopeft.results.leaderboard import ranked
from autopeft.results.wording import (
    MISSING,
    count_designs,
    direction_words,
    format_score,
    marked_words,
    outcome_words,
    serving_words,
)
from autopeft.spec.cost import format_cost
from autopeft.spec.objective import OBJECTIVES
from autopeft.spec.state import StudyState
from autopeft.spec.trial import Outcome, TrialRecord
from autopeft.spec.units import format_bytes, format_seconds
from autopeft.study.front import pareto_front

MIN_DESIGN_WIDTH = 24
"""Characters that the design keeps, however narrow the terminal."""

_SHORT = {
    "trainable_params": "params",
    "peak_memory": "memory",
    "train_flops": "train FLOP",
    "inference_flops": "infer FLOP",
    "adapter_bytes": "adapter",
}
_STYLES = {
    Outcome.COMPLETE: "",
    Outcome.FAILED: "red",
    Outcome.OUT_OF_MEMORY: "red",
    Outcome.INTERRUPTED: "yellow",
    Outcome.RUNNING: "yellow",
    Outcome.STOPPED: "dim",
    Outcome.INFEASIBLE: "dim",
}


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table.

    Attributes:
        cells: One text for each row.
        rank: How dispensable it is: of columns that do not fit, the one with the highest rank goes first.
    """

    name: str
    cells: tuple[str, ...]
    rank: int
    justify: str = "right"

    @property
    def width(self) -> int:
        """Return the characters that it needs without wrapping."""
        return max(cell_len(text) for text in (self.name, *self.cells))


@dataclass(frozen=True, kw_only=True)
class TrialTable:
    """Trials as rows; which columns are shown depends on the width of what it is printed on."""

    title: str
    columns: tuple[Column, ...]
    styles: tuple[str, ...]
    note: str = ""

    def shown(self, width: int) -> list[Column]:
        """Return the columns that fit into a width; the design may wrap."""
        shown = list(self.columns)

        def needed() -> int:
            own = (MIN_DESIGN_WIDTH if column.name == "design" else column.width for column in shown)
            return sum(own) + 2 * len(shown)

        while needed() > width and len(shown) > 1:
            shown.remove(max(shown, key=lambda column: column.rank))
        return shown

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render the table for this console's width."""
        plain = not console.is_terminal
        columns = self.shown(options.max_width)
        table = Table(
            box=None if plain else box.SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            padding=(0, 2 if plain else 1, 0, 0),
        )
        for column in columns:
            words = column.name == "design"
            table.add_column(column.name, justify="right" if column.justify == "right" else "left", no_wrap=not words)
        for index, style in enumerate(self.styles):
            table.add_row(*(Text(column.cells[index]) for column in columns), style="" if plain else style)
        yield Text(self.title, style="" if plain else "bold")
        if self.styles:
            yield table
        if self.note:
            yield Text(self.note, style="" if plain else "dim")
        yield Text("")


def front_table(state: StudyState) -> TrialTable:
    """Return the front, cheapest first."""
    front = pareto_front(state.trials, state.objectives)
    names = ", ".join(objective.label for objective in state.objectives)
    return TrialTable(
        title=f"Front by {names}: {count_designs(len(front))}" if front else "No front",
        columns=_columns(state, front),
        styles=tuple("" for _ in front),
        note=_score_note(state) if front else why_empty(state),
    )


def leaderboard_table(state: StudyState) -> TrialTable:
    """Return every trial, complete ones first, best first; `*` marks the front."""
    trials = ranked(state)
    front = {record.number for record in pareto_front(state.trials, state.objectives)}
    marks = Column(name="", cells=tuple("*" if t.number in front else "" for t in trials), rank=2, justify="left")
    outcomes = tuple(
        outcome_words(trial.outcome)
        if trial.outcome is not Outcome.STOPPED
        else f"stopped {trial.examples / state.n_full_examples:.0%}"
        for trial in trials
    )
    outcome = Column(name="outcome", cells=outcomes, rank=3, justify="left")
    number, *rest = _columns(state, trials)
    return TrialTable(
        title=f"All {len(trials)} trials of {state.spec.study_name}",
        columns=(number, marks, outcome, *rest),
        styles=tuple("bold" if trial.number in front else _STYLES[trial.outcome] for trial in trials),
        note=f"* on the front; {_score_note(state)}",
    )


def _columns(state: StudyState, trials: Sequence[TrialRecord]) -> tuple[Column, ...]:
    """Return the columns that both tables share, the trial's number first."""
    metric = state.metric
    measured = [trial.measured for trial in trials]
    columns = [
        Column(name="trial", cells=tuple(str(trial.number) for trial in trials), rank=1),
        Column(name=metric, cells=tuple(format_score(t.scores, t.standard_errors, metric) for t in trials), rank=0),
        Column(name="test", cells=tuple(_test(state, trial) for trial in trials), rank=5),
    ]
    costs = [objective.name for objective in state.objectives if objective.kind == "cost"]
    for place, name in enumerate(dict.fromkeys([*costs, "trainable_params"])):
        if name != "peak_memory":
            cells = tuple(format_cost(name, trial.estimate.cost(name)) for trial in trials)
            columns.append(
                Column(name=_SHORT.get(name, OBJECTIVES[name].label), cells=cells, rank=4 + 5 * min(place, 1))
            )
    memory = tuple(_memory(trial.estimate.peak_memory, trial.measured.peak_memory) for trial in trials)
    times = tuple(format_seconds(m.train_seconds) if m.train_seconds else MISSING for m in measured)
    return (
        *columns,
        Column(name="memory / measured", cells=memory, rank=7),
        Column(name="time", cells=times, rank=10),
        Column(name="serving", cells=tuple(serving_words(trial) for trial in trials), rank=8, justify="left"),
        Column(name="design", cells=tuple(_words(trial) for trial in trials), rank=-1, justify="left"),
    )


def _score_note(state: StudyState) -> str:
    """Say what the score columns hold."""
    direction = f" ({words})" if (words := direction_words(state.quality)) else ""
    return f"{state.quality.label}{direction} on validation and test ± standard error"


def _words(trial: TrialRecord) -> str:
    words = marked_words(trial)
    broken = trial.outcome in (Outcome.FAILED, Outcome.OUT_OF_MEMORY) and trial.reason
    return f"{words}\n{trial.reason}" if broken else words


def _test(state: StudyState, trial: TrialRecord) -> str:
    test = state.tests.get(trial.number)
    return MISSING if test is None else format_score(test.scores, test.standard_errors, state.metric)


def _memory(predicted: int, measured: int | None) -> str:
    """Write both peaks, and a unit that they share once: `390.0 / 384.8 MiB`."""
    first, second = format_bytes(predicted), MISSING if measured is None else format_bytes(measured)
    number, unit = first.split()
    return f"{number if second.endswith(unit) else first} / {second}"
