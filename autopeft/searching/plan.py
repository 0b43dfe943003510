"""What a search does, fixed before it starts, and what it is handed to do it with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from autopeft.spec.cost import Estimate
from autopeft.spec.design import Design
from autopeft.spec.objective import Objective
from autopeft.spec.study import EarlyStopping
from autopeft.spec.trial import BaselineName, TrialRecord
from autopeft.spec.units import format_bytes


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A design that is trained in full besides the proposed ones, to compare them with.

    The budget is for designs: a baseline that is over it is trained as a reference, shown beside the front and never on
    it. It is left out where it needs more memory than the device has.
    """

    name: BaselineName
    design: Design
    learning_rates: Mapping[str, float]

    def is_tried_in(self, record: TrialRecord) -> bool:
        """Return whether a trial is this baseline; full fine-tuning may be trained at several learning rates."""
        rates_differ = self.name == "full" and dict(record.learning_rates) != dict(self.learning_rates)
        return record.baseline == self.name and not rates_differ

    def refusal(self, estimate: Estimate, memory_bytes: int | None) -> str:
        """Return why it is not trained, or an empty string.

        Args:
            estimate: What it costs.
            memory_bytes: Of the device, where that is known.
        """
        # The weights that full fine-tuning changes are copies, beside those of the base.
        needed = estimate.device_bytes + (estimate.base_bytes if self.name == "full" else 0)
        if memory_bytes is None or needed <= memory_bytes:
            return ""
        return f"it needs {format_bytes(needed)} of memory, and the device has {format_bytes(memory_bytes)}"


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """What a search does, fixed before it starts.

    Attributes:
        objectives: In the order of the study's values.
        metric: The quality that rungs compare.
        limits: The budget as amounts.
        n_full_examples: Examples of a full training.
        n_trials: Designs that may start training, those of earlier runs included.
        timeout_seconds: For this call, from its beginning to its end; None for no limit.
        spent_seconds: What of that has gone by before the loop is made: preparation.
        closing_seconds: What of that is kept back for what follows the loop: the report.
        test: Whether there is a test split for the final check.
        test_size: Examples of the test split for each one of the validation split.
        n_validation: Examples of the validation split; 0 where nobody says.
        mean_length: Of an input, over that of the longest one.
        device: What designs train on, in words: what was measured on another one says nothing of it.
        memory_bytes: Of the device, where that is known.
        seconds_per_flop: Of training, as a few steps before the search took on the device, where that is known.
    """

    objectives: tuple[Objective, ...]
    metric: Objective
    limits: Mapping[str, int]
    n_full_examples: int
    n_trials: int
    timeout_seconds: float | None = None
    spent_seconds: float = 0.0
    closing_seconds: float = 0.0
    halving: EarlyStopping | None = None
    baselines: tuple[Baseline, ...] = ()
    seed: int = 0
    test: bool = True
    test_size: float = 1.0
    n_validation: int = 0
    mean_length: float = 1.0
    device: str = ""
    memory_bytes: int | None = None
    seconds_per_flop: float | None = None

    def stops(self, record: TrialRecord) -> tuple[int, ...]:
        """Return the examples after which a trial is scored: its rungs, then the full length."""
        rungs = self.halving.rungs if self.halving is not None and not record.baseline else ()
        return (*(round(fraction * self.n_full_examples) for fraction in rungs), self.n_full_examples)

    def next_stop(self, record: TrialRecord) -> int:
        """Return the examples after which a trial is scored next."""
        stops = self.stops(record)
        return stops[min(len(record.rungs), len(stops) - 1)]

    def is_last_stop(self, record: TrialRecord) -> bool:
        """Return whether a trial has trained in full once it is scored next."""
        return len(record.rungs) + 1 >= len(self.stops(record))

    @property
    def cost(self) -> Objective:
        """Return the objective that cost strata are made of: the first cost."""
        return next(objective for objective in self.objectives if objective.kind == "cost")


class CostModel(Protocol):
    """Answers what a design costs before it is trained; raises `DesignError` for one that cannot be."""

    def __call__(self, design: Design) -> Estimate:
        """Return the full estimate."""

    def trainable_params(self, design: Design) -> int:
        """Return the number of trainable parameters alone, which is cheap."""

    def lower_bound(self, design: Design) -> Mapping[str, int]:
        """Return costs that the full estimate surely reaches, by name: what is cheap to say, empty for nothing.

        A proposal whose lower bound is over the budget is refused without a full estimate.
        """
