"""The report: one HTML file that opens without a network, in light and in dark, on wide and narrow screens."""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from io import SEEK_END, StringIO
from math import isfinite
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from plotly.offline import get_plotlyjs
from ruamel.yaml import YAML

from autopeft.results.charts import front_chart, memory_chart, rung_chart, time_chart
from autopeft.results.comparison import Comparer
from autopeft.results.design_details import Pick, make_card, picks
from autopeft.results.diagnostics import MIN_RANKED, Written, memory_errors, rung_counts, throughput, written
from autopeft.results.front import why_empty
from autopeft.results.importance import Importance, Importances, importances
from autopeft.results.leaderboard import ranked
from autopeft.results.summary import gain_sentences, headline, time_words, unchecked_words
from autopeft.results.wording import (
    MISSING,
    count_designs,
    direction_words,
    format_interval,
    format_score,
    format_share,
    label_words,
    limit_words,
    mark,
    outcome_words,
    reason_words,
    serving_words,
)
from autopeft.spec.cost import format_cost
from autopeft.spec.state import StudyState
from autopeft.spec.trial import Outcome, TrialRecord
from autopeft.spec.units import format_bytes, format_count, format_seconds
from autopeft.study.front import pareto_front

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

REFUSALS = {
    "requirement": "not allowed by the search space",
    "illegal": "not possible with this model and data",
    "out_of_memory": "predicted to need no less than a trial that ran out of memory",
    "duplicate": "proposed before",
}
"""Why proposals are refused that are over no limit."""

N_BARS = 8
"""Choices that are shown for each objective: what comes after them is small."""
N_SIDE_BY_SIDE = 5
"""Designs whose texts are shown side by side; the others are folded away."""

_COLUMNS = (
    ("Trial", True),
    ("Design", False),
    ("Outcome", False),
    ("Validation", True),
    ("Test", True),
    ("Trainable", True),
    ("Memory", True),
    ("Measured", True),
    ("Trained", True),
    ("Time", True),
    ("Serving", False),
)
"""Columns of the table of all trials, and whether they hold numbers."""


def render_report(state: StudyState, *, interrupted: bool = False, time_is_up: bool = False) -> str:
    """Return the report as HTML; texts that people wrote are escaped.

    Args:
        state: The study.
        interrupted: Whether a signal ended the search.
        time_is_up: Whether its time limit did.
    """
    front = pareto_front(state.trials, state.objectives)
    comparer = Comparer(state)
    figures = {
        "front": front_chart(state),
        "memory": memory_chart(state),
        "time": time_chart(state),
        "rungs": rung_chart(state),
    }
    counts = state.outcomes
    chosen = picks(comparer) if front else ()
    references = [
        trial for trial in (state.yardstick, state.full, state.base) if trial is not None and trial not in front
    ]
    return _template().render(
        state=state,
        interrupted=interrupted,
        unfinished=[words for words in (time_words(state) if time_is_up else "", unchecked_words(state)) if words],
        n_running=counts[Outcome.RUNNING],
        headline=headline(comparer),
        tagline=_tagline(state),
        why_empty="" if front else why_empty(state),
        gains=gain_sentences(comparer),
        direction=direction_words(state.quality),
        front=front,
        front_numbers={trial.number for trial in front},
        yardstick=state.yardstick,
        references=references,
        picks=chosen,
        cards={trial.number: make_card(comparer, trial, compare=trial in front).to_dict() for trial in state.chains},
        importances=[importances(state, objective) for objective in state.objectives],
        figures={name: figure.to_plotly_json() for name, figure in figures.items() if figure is not None},
        refusals=REFUSALS,
        rungs=rung_counts(state),
        min_ranked=MIN_RANKED,
        memory_errors=memory_errors(state),
        speed=throughput(state),
        samples=_samples(state, chosen),
        n_side_by_side=N_SIDE_BY_SIDE,
        outcomes=[(outcome, counts[outcome], OUTCOME_MEANINGS[outcome]) for outcome in Outcome if counts[outcome]],
        kinds=sorted({kind for trial in state.chains for kind in trial.design.kinds}),
        columns=_COLUMNS,
        # Of these columns the largest value is what a reader looks for first.
        higher=[3, 4] if state.quality.direction == "maximize" else [],
        trials=ranked(state),
        summary=_summary(state),
        study_yaml=study_yaml(state),
        facts=sorted(state.facts.items()),
        css=_read("report.css"),
        js=_read("report.js"),
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
    environment = Environment(
        loader=FunctionLoader(_read), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        bytes=format_bytes,
        cost=lambda value, name: format_cost(name, value),
        count=format_count,
        seconds=format_seconds,
        score=lambda source, name: format_score(source.scores, source.standard_errors, name) if source else MISSING,
        interval=lambda source, name: format_interval(source.scores, source.standard_errors, name) if source else "",
        number=_number,
        outcome=outcome_words,
        words=TrialRecord.describe,
        mark=mark,
        share=format_share,
        serving=serving_words,
        reason=reason_words,
        designs=count_designs,
        fact=_fact,
        telling=_telling,
        label=label_words,
    )
    return environment.get_template("report.html")


def _number(source: Any, name: str) -> str:
    """Return a score as the page's script reads it to sort by; nothing where there is none."""
    value = source.scores.get(name, float("nan")) if source else float("nan")
    return repr(float(value)) if isfinite(value) else ""


def _telling(found: Importances) -> list[Importance]:
    """Return the choices that stand out from the noise of shuffling, the most important first."""
    return [part for part in found.parameters if part.value > max(0.005, 2 * part.standard_error)][:N_BARS]


def _samples(state: StudyState, chosen: tuple[Pick, ...]) -> tuple[Written, ...]:
    by_number: dict[int, TrialRecord] = {trial.number: trial for trial in state.trials}
    return written(state, [by_number[pick.card.number] for pick in chosen])


def _tagline(state: StudyState) -> str:
    """Return model, data and budget on one line."""
    return f"{state.model.name} · {state.spec.data} · budget: {_budget(state)}"


def _budget(state: StudyState) -> str:
    limits = limit_words(state)
    return "; ".join(limits) or "none"


def _summary(state: StudyState) -> list[tuple[str, str]]:
    """Return what was asked, and what it took."""
    spec, training = state.spec, state.training
    space = spec.space if isinstance(spec.space, str) else "given in the study"
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
        ("Budget", _budget(state)),
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
