"""The report: one HTML file that opens without a network, in light and in dark, on wide and narrow screens."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from io import SEEK_END, StringIO
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from plotly.offline import get_plotlyjs
from ruamel.yaml import YAML

from autopeft.results.charts import front_chart, memory_chart, rung_chart
from autopeft.results.comparison import Comparer
from autopeft.results.front import why_empty
from autopeft.results.leaderboard import ranked
from autopeft.results.selection import best, knee
from autopeft.results.summary import gain_sentences
from autopeft.results.wording import (
    MISSING,
    SERVING,
    count_designs,
    format_interval,
    format_score,
    outcome_words,
    reason_words,
)
from autopeft.searching.folder import StudyFolder
from autopeft.searching.pareto import pareto_front
from autopeft.spec.cost import format_cost
from autopeft.spec.objective import OBJECTIVES
from autopeft.spec.state import StudyState
from autopeft.spec.trial import Outcome, TrialRecord
from autopeft.spec.units import format_bytes, format_count, format_seconds

OUTCOME_MEANINGS: dict[Outcome, str] = {
    Outcome.COMPLETE: "trained in full; only these can be on the front",
    Outcome.STOPPED: "ended at a rung, because others of about the same cost were better there",
    Outcome.INFEASIBLE: "over the budget; recorded, never trained",
    Outcome.FAILED: "ended with an error",
    Outcome.OUT_OF_MEMORY: "needed more memory than the device had",
    Outcome.INTERRUPTED: "broken off by the time limit or a request; goes on from its checkpoint at the next call",
    Outcome.RUNNING: "was being trained when this was written",
}
"""What each outcome means, for readers who have not met the words."""


@dataclass(frozen=True, kw_only=True)
class Pick:
    """A design that the report recommends for a reason."""

    names: tuple[str, ...]
    trial: TrialRecord
    code: str


def render_report(state: StudyState, *, interrupted: bool = False) -> str:
    """Return the report as HTML; texts that people wrote are escaped."""
    front = pareto_front(state.trials, state.objectives)
    yardstick = state.yardstick
    comparer = Comparer(state)
    figures = {"front": front_chart(state), "memory": memory_chart(state), "rungs": rung_chart(state)}
    counts = Counter(trial.outcome for trial in state.chains)
    return _template().render(
        state=state,
        interrupted=interrupted,
        summary=_summary(state),
        why_empty="" if front else why_empty(state),
        gains=gain_sentences(comparer),
        front=front,
        yardstick=yardstick,
        reference=[yardstick] if yardstick is not None and yardstick not in front else [],
        picks=_picks(comparer) if front else [],
        figures={name: figure.to_plotly_json() for name, figure in figures.items() if figure is not None},
        memory_error=_memory_error(state),
        outcomes=[(outcome, counts[outcome], OUTCOME_MEANINGS[outcome]) for outcome in Outcome if counts[outcome]],
        trials=ranked(state),
        study_yaml=study_yaml(state),
        facts=sorted(state.facts.items()),
        css=_read("report.css"),
        plotly_js=get_plotlyjs(),
    )


def study_yaml(state: StudyState) -> str:
    """Return the study as a study file, as it was asked; what was left open is said in a comment."""
    training = state.training
    chosen = f"{training.precision}, {training.kernel} attention, {training.device}"
    text = StringIO(f"# metric: {state.metric}; computed with: {chosen}\n")
    text.seek(0, SEEK_END)
    YAML(typ="rt", pure=True).dump(state.spec.to_dict(), text)
    return text.getvalue()


def _read(name: str) -> str:
    return files("autopeft.results").joinpath(name).read_text(encoding="utf-8")


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        bytes=format_bytes,
        cost=lambda value, name: format_cost(name, value),
        count=format_count,
        seconds=format_seconds,
        score=lambda source, name: format_score(source.scores, source.standard_errors, name) if source else MISSING,
        interval=lambda source, name: format_interval(source.scores, source.standard_errors, name) if source else "",
        outcome=outcome_words,
        serving=lambda trial: SERVING[trial.estimate.serving],
        reason=reason_words,
        designs=count_designs,
        fact=_fact,
        label=lambda name: OBJECTIVES[name].label if name in OBJECTIVES else name.replace("_", " "),
    )
    return environment.from_string(_read("report.html"))


def _summary(state: StudyState) -> list[tuple[str, str]]:
    """Return the facts at the head of the report."""
    spec, training = state.spec, state.training
    space = spec.space if isinstance(spec.space, str) else "given in the study"
    limits = [f"{OBJECTIVES[name].label} ≤ {format_cost(name, limit)}" for name, limit in state.limits.items()]
    spent = sum(t.measured.train_seconds + t.measured.evaluation_seconds for t in state.chains)
    timeout = f", at most {format_seconds(spec.timeout)} for each call" if spec.timeout else ""
    return [
        (
            "Model",
            f"{state.model.name}, {format_count(state.model.n_parameters)} parameters, {state.model.n_layers} layers",
        ),
        ("Data", f"{spec.data} ({spec.task})"),
        ("Search space", space),
        ("Objectives", ", ".join(objective.label for objective in state.objectives)),
        ("Budget", "; ".join(limits) or "none"),
        (
            "Full training",
            f"{state.n_full_examples:,} examples, batches of {training.batch_size}, {training.precision}, "
            f"{training.kernel} attention, {training.device}",
        ),
        ("Time", f"{format_seconds(spent)} of training and evaluation{timeout}"),
        ("Sampler", f"{spec.sampler}, seed {spec.seed}"),
    ]


def _fact(value: Any) -> str:
    """Write a value of the study file on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_fact(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_fact(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _picks(comparer: Comparer) -> list[Pick]:
    """Return best, knee and cheapest within one standard error; a design that is several of them comes once."""
    chosen = {
        "Best": best(comparer, None, None, {}),
        "Knee": knee(comparer.state),
        "Cheapest within one standard error of the best": best(comparer, None, "1se", {}),
    }
    numbers = dict.fromkeys(trial.number for trial in chosen.values())
    return [
        Pick(
            names=tuple(name for name, trial in chosen.items() if trial.number == number),
            trial=next(trial for trial in chosen.values() if trial.number == number),
            code=f"model, processor = autopeft.load(\n    {json.dumps(_adapter(comparer.state, number))}\n)",
        )
        for number in numbers
    ]


def _adapter(state: StudyState, number: int) -> str:
    """Return an adapter's folder as one would type it: relative to the working folder where it is below that."""
    folder, here = StudyFolder(state.folder).adapter(number), Path.cwd()
    shown = folder.relative_to(here) if folder.is_absolute() and folder.is_relative_to(here) else folder
    return shown.as_posix()


def _memory_error(state: StudyState) -> Mapping[str, Any] | None:
    """Return how far the predicted peak memory was off, over the trials where it was measured."""
    errors = [
        abs(trial.estimate.peak_memory / trial.measured.peak_memory - 1)
        for trial in state.chains
        if trial.measured.peak_memory
    ]
    return {"n": len(errors), "median": median(errors), "max": max(errors)} if errors else None
