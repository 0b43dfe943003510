"""How good a front is in one number: the share of a box of outcomes that it dominates.

The box is a function of the resolved study alone and is written into the study file before the first trial,
so that the values of one study, and of repeated studies with the same settings, can be compared.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from autopeft.spec.model import ModelSummary
from autopeft.spec.objective import Objective
from autopeft.spec.state import StudyState
from autopeft.spec.trial import TrialRecord
from autopeft.study.front import eligible

FACT = "hypervolume"
"""Where the box stands among the facts of a study."""

_ADAM_BYTES = 12
"""Of each trained fp32 parameter: its gradient and Adam's two moments."""
_FULL_TRAINING_FLOPS = 3
"""Forward and backward through every weight, in multiples of the forward pass."""
_SLOWEST_INFERENCE = 2
"""Inference compute at which an adapter is worth nothing, in multiples of the base model's."""


@dataclass(frozen=True, kw_only=True)
class Box:
    """The outcomes between a useless one and an ideal one, by objective in its own unit.

    Attributes:
        ideal: The best value that counts; whatever is better counts as this.
        reference: The worst value that counts; whatever is worse adds nothing.
    """

    ideal: Mapping[str, float]
    reference: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return the box as JSON-ready values."""
        return asdict(self)

    def share(self, objective: Objective, value: float) -> float:
        """Return how far a value is from the ideal: 0 there, 1 at the reference and beyond."""
        if math.isnan(value):
            return 1.0
        ideal, reference = (_scale(objective, end[objective.name]) for end in (self.ideal, self.reference))
        width = reference - ideal
        if not width:
            return 0.0 if objective.loss(value) <= objective.loss(self.ideal[objective.name]) else 1.0
        return min(1.0, max(0.0, (_scale(objective, value) - ideal) / width))


@dataclass(frozen=True, kw_only=True)
class HypervolumePoint:
    """The hypervolume once a trial had trained in full.

    Attributes:
        value: Share of the box that the trials so far dominate, from 0 to 1.
        elapsed_seconds: From the start of the study's first trial, pauses included; None where times are not known.
            It never falls, also where the clock was set back.
    """

    trial: int
    value: float
    elapsed_seconds: float | None = None


def make_box(
    objectives: Sequence[Objective],
    *,
    cheapest: Mapping[str, float],
    limits: Mapping[str, float],
    model: ModelSummary,
    n_labels: int,
) -> Box:
    """Return the box of a study.

    A cost reaches from that of the cheapest design to the budget's limit. Without a limit it ends where
    an adapter has nothing to offer: `trainable_params` at full fine-tuning, `adapter_bytes` at the whole
    model in fp32, `peak_memory` at the cheapest plus gradient and Adam state for every weight,
    `train_flops` at three times the cheapest, `inference_flops` at twice the cheapest. Quality reaches from the
    worst value of its objective to the best. Loss is worst where the answer is guessed among the labels, or
    among the vocabulary where a task has no labels; so is perplexity.

    Args:
        objectives: Of the study.
        cheapest: The lowest of each cost, above 0: the new modules alone, or the smallest design of the
            space where the model has none.
        limits: The budget as amounts.
        model: What trains in full fine-tuning, and the vocabulary.
        n_labels: Classes of the task; 0 for a language model.

    Omits: that full fine-tuning keeps more activations than head-only training; its peak is higher than the
        reference by those.
    """
    n_weights = model.n_parameters + model.n_head_parameters
    n_answers = n_labels or model.vocabulary_size
    references = {
        "trainable_params": n_weights,
        "adapter_bytes": 4 * n_weights,
        "peak_memory": cheapest.get("peak_memory", 0) + _ADAM_BYTES * n_weights,
        "train_flops": _FULL_TRAINING_FLOPS * cheapest.get("train_flops", 0),
        "inference_flops": _SLOWEST_INFERENCE * cheapest.get("inference_flops", 0),
        "loss": math.log(n_answers),
        "perplexity": n_answers,
    }
    ideal, reference = {}, {}
    for objective in objectives:
        name = objective.name
        if objective.kind == "cost":
            ideal[name], reference[name] = float(cheapest[name]), float(limits.get(name, references[name]))
        else:
            assert objective.best is not None, f"{name} has no best value: give it one in autopeft/spec/objective.py"
            worst = references[name] if objective.worst is None else objective.worst
            ideal[name], reference[name] = objective.best, float(worst)
    return Box(ideal=ideal, reference=reference)


def hypervolume(records: Sequence[TrialRecord], objectives: Sequence[Objective], box: Box) -> float:
    """Return the share of the box that feasible, fully trained trials dominate, from 0 to 1.

    Costs and perplexity count by their logarithms: to halve one is worth the same anywhere.
    """
    return _dominated([_point(record, objectives, box) for record in eligible(records)])


def hypervolume_history(state: StudyState) -> tuple[HypervolumePoint, ...]:
    """Return the hypervolume after each feasible trial that trained in full, in the order in which they ended.

    The order is that of the study's events: a clock that is set back changes no order. Trials of older records, which
    have no events, come first, by the clock; of these, the ones whose time of ending is not known, by number. Empty
    where the study file has no box: an earlier version wrote it.
    """
    if FACT not in state.facts:
        return ()
    box = Box(**state.facts[FACT])
    start = next((trial.started_at for trial in state.trials if trial.started_at is not None), None)
    points: list[tuple[float, ...]] = []
    history = []
    latest = 0.0
    for trial in sorted(eligible(state.trials), key=_order_of_ending):
        points.append(_point(trial, state.objectives, box))
        elapsed = None
        if start is not None and trial.ended_at is not None:
            elapsed = latest = max(latest, trial.ended_at - start)
        history.append(HypervolumePoint(trial=trial.number, value=_dominated(points), elapsed_seconds=elapsed))
    return tuple(history)


def _order_of_ending(trial: TrialRecord) -> tuple[int, float, int]:
    if trial.last_event is None:
        return 0, trial.ended_at or 0.0, trial.number
    return 1, trial.last_event, trial.number


def _dominated(points: Sequence[Sequence[float]]) -> float:
    """Return the volume of the unit cube that points dominate; smaller is better in every coordinate.

    Source: Zitzler and Thiele, PPSN 1998, computed by moocore (Fonseca, Paquete and Lopez-Ibanez, CEC 2006).
    """
    import moocore

    return float(moocore.hypervolume(points, ref=[1.0] * len(points[0]))) if points else 0.0


def _point(record: TrialRecord, objectives: Sequence[Objective], box: Box) -> tuple[float, ...]:
    return tuple(box.share(objective, record.value(objective.name)) for objective in objectives)


def _scale(objective: Objective, value: float) -> float:
    """Return a value on the scale on which distances are measured."""
    logarithmic = objective.kind == "cost" or objective.name == "perplexity"
    return math.log10(max(value, 1e-300)) if logarithmic else value
