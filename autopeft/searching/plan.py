"""What a search does, fixed before it starts, and what it is handed to do it with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from autopeft.spec.cost import Estimate
from autopeft.spec.design import Design
from autopeft.spec.objective import Objective
from autopeft.spec.study import EarlyStopping
from autopeft.spec.trial import TrialRecord


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A design that is trained in full besides the proposed ones, to compare them with."""

    name: Literal["yardstick", "head", "base"]
    design: Design
    learning_rates: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """What a search does, fixed before it starts.

    Attributes:
        objectives: In the order of the study's values.
        metric: The quality that rungs compare.
        limits: The budget as amounts.
        n_full_examples: Examples of a full training.
        n_trials: Designs that may start training, those of earlier runs included.
        timeout_seconds: For this call, or None.
        test: Whether there is a test split for the final check.
    """

    objectives: tuple[Objective, ...]
    metric: Objective
    limits: Mapping[str, int]
    n_full_examples: int
    n_trials: int
    timeout_seconds: float | None = None
    halving: EarlyStopping | None = None
    baselines: tuple[Baseline, ...] = ()
    seed: int = 0
    test: bool = True

    def stops(self, record: TrialRecord) -> tuple[int, ...]:
        """Return the examples after which a trial is scored: its rungs, then the full length."""
        rungs = self.halving.rungs if self.halving is not None and not record.baseline else ()
        return (*(round(fraction * self.n_full_examples) for fraction in rungs), self.n_full_examples)

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
