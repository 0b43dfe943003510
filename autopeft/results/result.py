"""The answer of a search: its front, its trials, and what to take from them."""

import shutil
from functools import cached_property
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING, Any, Literal, overload

import pandas as pd

from autopeft.errors import ResultError
from autopeft.results import selection
from autopeft.results.comparison import Comparer, Comparison
from autopeft.results.front import Front
from autopeft.results.leaderboard import make_leaderboard
from autopeft.results.model_card import write_card
from autopeft.results.wording import format_score, outcome_words
from autopeft.spec.state import StudyState
from autopeft.spec.trial import Outcome, TrialRecord
from autopeft.study.folder import ADAPTER_MARK, StudyFolder
from autopeft.study.front_file import front_values

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SearchResult:
    """What a search found, or has found so far.

    Attributes:
        state: Everything that is known of the study.
        stopped_by: The signal that stopped the search before it was done, if one did; calling it again goes on.
        time_is_up: Whether the search's `timeout` ended it before it was done; calling it again goes on.
    """

    def __init__(self, state: StudyState, *, stopped_by: Signals | None = None, time_is_up: bool = False) -> None:
        self.state = state
        self.stopped_by = stopped_by
        self.time_is_up = time_is_up
        self._comparer = Comparer(state)

    @property
    def interrupted(self) -> bool:
        """Return whether the search was stopped before it was done."""
        return self.stopped_by is not None

    @cached_property
    def front(self) -> Front:
        """Return the feasible, non-dominated, fully trained designs, cheapest first; it may be empty."""
        return Front(self.state)

    @property
    def yardstick(self) -> TrialRecord | None:
        """Return the default design that the front is measured against, where it trained in full."""
        return self.state.yardstick

    def leaderboard(self) -> pd.DataFrame:
        """Return every trial, complete ones first, best first; see `make_leaderboard` for the columns."""
        return make_leaderboard(self.state)

    def best(
        self, metric: str | None = None, *, within: Literal["1se"] | None = None, **limits: str | float
    ) -> TrialRecord:
        """Return the best fully trained design within the limits, of those that nothing beats in metric and cost.

        Args:
            metric: A quality metric, by default the study's; or a cost, for the cheapest design of the front.
            within: `"1se"` asks for the cheapest design (by the first cost objective) that the best one is better
                than by no more than one standard error of their paired difference on the validation split.
            **limits: By cost, as in a budget: `trainable_params="0.5%"`, `peak_memory="4GiB"`.

        Raises:
            ResultError: Nothing trained in full within the limits, or the metric is unknown.
            BudgetError: A limit cannot be read.

        Source: the one-standard-error rule of Breiman et al. 1984, "Classification and Regression Trees",
            section 3.4.3; the standard error here is that of the paired difference.
        """
        return selection.best(self._comparer, metric, within, limits)

    def knee(self) -> TrialRecord:
        """Return the design of the front after which more cost buys least.

        With log10 of the first cost and the quality each scaled to 0..1 over the front, it is the design furthest
        above the chord from the cheapest to the best. Where none is above it (or there are fewer than three), no
        design bends the front, and the best is returned.

        Raises:
            ResultError: No design trained in full.

        Source: Satopaa et al. 2011, "Finding a 'Kneedle' in a Haystack", section III; without its smoothing and
            its threshold, since a front is discrete and already monotone.
        """
        return selection.knee(self.state)

    def gain_over_yardstick(self) -> selection.Gain:
        """Compare the front with the yardstick: at no more cost, at no less quality, and overall.

        Raises:
            ResultError: The front is empty, or no yardstick trained in full.
        """
        return selection.gain_over_yardstick(self._comparer)

    def compare(self, trial: TrialRecord | int, reference: TrialRecord | int, metric: str | None = None) -> Comparison:
        """Return by how much one finished trial is better than another, with standard errors.

        Raises:
            ResultError: There is no such trial, or one of them was not scored.
        """
        return self._comparer.compare(self.trial(trial), self.trial(reference), metric)

    def trial(self, trial: TrialRecord | int) -> TrialRecord:
        """Return a trial of the study by its number.

        Raises:
            ResultError: There is none.
        """
        number = trial if isinstance(trial, int) else trial.number
        for record in self.state.trials:
            if record.number == number:
                return record
        raise ResultError(f"a trial must be one of 0 to {len(self.state.trials) - 1}, but got {number}")

    def export(self, trial: TrialRecord | int, path: str | Path) -> Path:
        """Copy a trained design's adapter, which `autopeft.load` reads, to a new folder, with its model card.

        Raises:
            ResultError: The trial did not train in full, its adapter is not there, or the folder is not empty.
        """
        record, target = self.trial(trial), Path(path)
        if record.outcome is not Outcome.COMPLETE:
            front = ", ".join(str(record.number) for record in self.front)
            raise ResultError(
                f"only a trial that trained in full has an adapter, but trial {record.number} is "
                f"{outcome_words(record.outcome)}; the front has {front or 'none'}"
            )
        source = StudyFolder(self.state.folder).fetch_adapter(record.number)
        if not (source / ADAPTER_MARK).is_file():
            elsewhere = f"the search {record.driver}, which trained it, has it in its own output_dir"
            why = elsewhere if record.driver else "autopeft clean --adapters takes away those off the front"
            raise ResultError(f"the adapter of trial {record.number} must be in {source}, but it is not there; {why}")
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ResultError(f"an export goes to a new or an empty folder, but {target} has content; choose another")
        shutil.copytree(source, target, dirs_exist_ok=True)
        write_card(self.state, record, target)
        return target

    @overload
    def plot(self, *, interactive: Literal[False] = False) -> "Figure": ...
    @overload
    def plot(self, *, interactive: Literal[True]) -> Any: ...
    def plot(self, *, interactive: bool = False) -> Any:
        """Draw the front with every trial, the yardstick and 95 % intervals, over the logarithm of the first cost.

        Args:
            interactive: Return a plotly figure, with each trial's design where one points at it, in place of a
                matplotlib figure.
        """
        if interactive:
            from autopeft.results.charts import front_chart

            return front_chart(self.state)
        from autopeft.results.plots import draw_front

        return draw_front(self.state)

    def report(self, path: str | Path) -> Path:
        """Write the report, one HTML file that needs no network, and return its path."""
        from autopeft.results.report import render_report

        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(
            render_report(self.state, interrupted=self.interrupted, time_is_up=self.time_is_up), encoding="utf-8"
        )
        return target

    def paths(self) -> dict[str, Path]:
        """Return where `save` writes, by what is there: the report, the front as data, and as a picture."""
        names = {"report": "report.html", "front": "front.json", "picture": "front.png", "adapters": "adapters"}
        return {what: self.state.folder / name for what, name in names.items()}

    def save(self) -> dict[str, Path]:
        """Write `front.json`, `front.png`, `report.html` and the adapters' model cards, and return `paths`."""
        paths = self.paths()
        StudyFolder(self.state.folder).write_json(paths["front"], front_values(self.state))
        self.plot().savefig(paths["picture"], dpi=150)
        self.report(paths["report"])
        for record in self.state.trials:
            adapter = StudyFolder(self.state.folder).adapter(record.number)
            if record.outcome is Outcome.COMPLETE and (adapter / ADAPTER_MARK).is_file():
                write_card(self.state, record, adapter)
        return paths

    def summary(self) -> str:
        """Return what was found in a few lines."""
        from autopeft.results.summary import summarize

        return summarize(self.state, interrupted=self.interrupted, time_is_up=self.time_is_up)

    def __repr__(self) -> str:
        """Return one line: the study, how many trials, the front, and where it lies."""
        return f"<SearchResult {self.state.spec.study_name}: {self._short()}; {self.state.folder}>"

    def __str__(self) -> str:
        """Return the summary."""
        return self.summary()

    def _repr_html_(self) -> str:
        """Return what a notebook shows: a sentence, the front as a table, and its picture."""
        from autopeft.results.notebook import result_html
        from autopeft.results.summary import headline

        return result_html(self.state, headline(self._comparer))

    def _short(self) -> str:
        """Return the numbers of trials and of designs on the front, and the best of them."""
        trials = f"{len(self.state.chains)} trials"
        if not self.front:
            return f"{trials}, no front"
        top, metric = self.best(), self.state.metric
        score = format_score(top.scores, top.standard_errors, metric)
        return f"{trials}, front of {len(self.front)}, best {metric} {score} (trial {top.number})"
