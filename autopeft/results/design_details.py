"""Cards: all that is said of one design, and the designs that a report recommends, with the code that loads them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autopeft.results.comparison import Comparer
from autopeft.results.selection import best, knee
from autopeft.results.wording import (
    MISSING,
    format_difference,
    format_interval,
    format_score,
    format_share,
    mark,
    outcome_words,
    reason_words,
    serving_words,
    verdict,
)
from autopeft.spec.cost import format_cost
from autopeft.spec.objective import OBJECTIVES
from autopeft.spec.state import StudyState
from autopeft.spec.trial import Outcome, TrialRecord
from autopeft.spec.units import format_bytes, format_count, format_seconds
from autopeft.study.folder import StudyFolder


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One line of a card: what it is, the value, and what belongs to it in smaller type."""

    label: str
    value: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What is said of one trial.

    Attributes:
        code: Python that loads the trained design; empty where there is none to load, and `note` says why.
    """

    number: int
    words: str
    mark: str
    facts: tuple[Fact, ...]
    code: str
    note: str

    def to_dict(self) -> dict[str, Any]:
        """Return the card as JSON-ready values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Pick:
    """A design that is recommended for a reason.

    Attributes:
        key: Of the tab: `best`, `knee` or `cheapest`.
        same_as: Names of the other picks that are the same design.
    """

    key: str
    name: str
    meaning: str
    card: Card
    same_as: tuple[str, ...]


def picks(comparer: Comparer) -> tuple[Pick, ...]:
    """Return the best design, the knee, and the cheapest within one standard error of the best.

    Raises:
        ResultError: The front is empty.
    """
    state = comparer.state
    chosen = (
        ("best", "Best", f"best {state.quality.label} on validation", best(comparer, None, None, {})),
        ("knee", "Knee", f"after it, more {state.cost.label} buys least", knee(state)),
        (
            "cheapest",
            "Cheapest tied",
            "the cheapest within one standard error of the best",
            best(comparer, None, "1se", {}),
        ),
    )
    return tuple(
        Pick(
            key=key,
            name=name,
            meaning=meaning,
            card=make_card(comparer, trial, compare=True),
            same_as=tuple(n for k, n, _, other in chosen if k != key and other.number == trial.number),
        )
        for key, name, meaning, trial in chosen
    )


def make_card(comparer: Comparer, trial: TrialRecord, *, compare: bool = False) -> Card:
    """Return what is said of a trial; `compare` adds what it gains over the yardstick, where there is one."""
    state, yardstick = comparer.state, comparer.state.yardstick
    gain = []
    if compare and yardstick is not None and yardstick.number != trial.number:
        difference = comparer.compare(trial, yardstick).soundest
        amount = format_difference(difference, state.quality).split(" (")[0]
        gain = [Fact(label=f"over yardstick, {difference.split}", value=amount, detail=verdict(difference))]
    loadable = trial.outcome is Outcome.COMPLETE and trial.baseline != "base"
    code = (
        f"import autopeft\n\nmodel, processor = autopeft.load(\n    {json.dumps(adapter_path(state, trial.number))}\n)"
    )
    return Card(
        number=trial.number,
        words=trial.describe(),
        mark=mark(trial),
        facts=(*_scores(state, trial), *gain, *_costs(state, trial)),
        code=code if loadable else "",
        note="" if loadable else _why_not_loadable(state, trial),
    )


def adapter_path(state: StudyState, number: int) -> str:
    """Return an adapter's folder as one would type it: relative to the working folder where it is below that."""
    folder, here = StudyFolder(state.folder).adapter(number), Path.cwd()
    shown = folder.relative_to(here) if folder.is_absolute() and folder.is_relative_to(here) else folder
    return shown.as_posix()


def _why_not_loadable(state: StudyState, trial: TrialRecord) -> str:
    if trial.baseline == "base":
        return "The base model as it is: a reference, with nothing trained."
    reason = reason_words(trial, state.limits)
    return f"No adapter to load: {outcome_words(trial.outcome)}{f' ({reason})' if reason else ''}."


def _scores(state: StudyState, trial: TrialRecord) -> list[Fact]:
    """Return the score on each split, the test split first: nothing was chosen by it."""
    test = state.tests.get(trial.number)
    sources: list[tuple[str, Mapping[str, float], Mapping[str, float]]] = [
        ("validation", trial.scores, trial.standard_errors)
    ]
    if test is not None:
        sources.insert(0, ("test", test.scores, test.standard_errors))
    return [
        Fact(
            label=f"{state.quality.label}, {split}",
            value=format_score(scores, errors, state.metric),
            detail=format_interval(scores, errors, state.metric),
        )
        for split, scores, errors in sources
    ]


def _costs(state: StudyState, trial: TrialRecord) -> list[Fact]:
    """Return what the design costs, other cost objectives of the study included."""
    estimate, measured = trial.estimate, trial.measured
    share = f"{format_share(trial, state.model.n_parameters)} of the model"
    peak = f"measured {format_bytes(measured.peak_memory)}" if measured.peak_memory else "not measured"
    shown = ("trainable_params", "peak_memory", "adapter_bytes")
    others = [o.name for o in state.objectives if o.kind == "cost" and o.name not in shown]
    return [
        Fact(label="trainable", value=format_count(estimate.trainable_params), detail=share),
        Fact(label="peak memory", value=format_bytes(estimate.peak_memory), detail=peak),
        *(Fact(label=OBJECTIVES[n].label, value=format_cost(n, estimate.cost(n))) for n in others),
        Fact(label="adapter", value=format_bytes(estimate.adapter_bytes), detail=serving_words(trial)),
        Fact(
            label="training",
            value=format_seconds(measured.train_seconds) if trial.examples else MISSING,
            detail=f"{trial.examples:,} examples" if trial.examples else "",
        ),
    ]
