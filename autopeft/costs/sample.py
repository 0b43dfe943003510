"""What random designs of a space cost, and how many of them a budget leaves."""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from autopeft.costs.costing import Costing
from autopeft.costs.model_costs import ModelCosts
from autopeft.costs.setting import Setting
from autopeft.errors import DesignError
from autopeft.spec.cost import Estimate, excess
from autopeft.spec.design import Design
from autopeft.spec.objective import COSTS
from autopeft.spec.space import Draw, RandomChooser, SearchSpace
from autopeft.spec.unsupported import leave_out_unsupported

QUANTILES = {"smallest": 0.0, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "largest": 1.0}
"""What is said of each cost, by its name in tables."""
NOTHING_TRAINS = "a design must train something"

Progress = Callable[[str, int, int], None]
"""Told what is being done, how many are done, and of how many."""


@dataclass(frozen=True, kw_only=True)
class CostSample:
    """Costs of random designs of a space.

    Attributes:
        space: Its name.
        setting: How they would be trained.
        costs: Each legal draw with its cost; a design that was drawn twice is there twice.
        n_illegal: Draws that are no design to train, by the rule that they break.
        limits: The budget, as amounts.
        notes: What of the space the model cannot have.
    """

    space: str
    setting: Setting
    costs: tuple[tuple[Design, Estimate], ...]
    n_illegal: Mapping[str, int]
    limits: Mapping[str, int]
    notes: tuple[str, ...] = ()

    @property
    def n_drawn(self) -> int:
        """Return how many designs were drawn, legal or not."""
        return len(self.costs) + sum(self.n_illegal.values())

    @property
    def quantiles(self) -> dict[str, dict[str, int]]:
        """Return what `QUANTILES` names, of each cost of the legal draws; empty where there are none."""
        if not self.costs:
            return {}
        values = {name: [estimate.cost(name) for _, estimate in self.costs] for name in COSTS}
        return {
            name: {label: round(float(np.quantile(of, share))) for label, share in QUANTILES.items()}
            for name, of in values.items()
        }

    @property
    def step_seconds(self) -> dict[str, float]:
        """Return what `QUANTILES` names, of the predicted time of a training step; empty where none was predicted."""
        seconds = [s for _, estimate in self.costs if (s := estimate.predicted_step_seconds) is not None]
        return {label: float(np.quantile(seconds, share)) for label, share in QUANTILES.items()} if seconds else {}

    @property
    def n_estimated_by(self) -> dict[str, int]:
        """Return how many of the costs each version of the estimators said."""
        return dict(Counter(estimate.version for _, estimate in self.costs))

    @property
    def n_over(self) -> dict[str, int]:
        """Return how many legal draws exceed each limit."""
        over = [excess(self.limits, estimate) for _, estimate in self.costs]
        return {name: sum(each[name] > 0 for each in over) for name in self.limits}

    @property
    def feasible_share(self) -> float:
        """Return the share of the legal draws that meets every limit; 0 where there are none."""
        fits = [all(value <= 0 for value in excess(self.limits, estimate).values()) for _, estimate in self.costs]
        return sum(fits) / max(1, len(fits))

    def extremes(self) -> tuple[tuple[Design, Estimate], ...]:
        """Return the design that trains the fewest parameters, and the one that trains the most."""
        ranked = sorted(self.costs, key=lambda pair: (pair[1].trainable_params, pair[1].peak_memory))
        return (ranked[0], ranked[-1]) if ranked else ()

    def to_dict(self) -> dict[str, Any]:
        """Return the sample as JSON-ready values."""
        return {
            "space": self.space,
            "n_drawn": self.n_drawn,
            "n_illegal": dict(self.n_illegal),
            "notes": list(self.notes),
            "limits": dict(self.limits),
            "feasible_share": self.feasible_share,
            "n_over": self.n_over,
            "quantiles": self.quantiles,
            "step_seconds": self.step_seconds,
            "n_estimated_by": self.n_estimated_by,
            "extremes": [
                {"design": design.to_dict(), "estimate": estimate.to_dict()} for design, estimate in self.extremes()
            ],
        }


def sample_costs(
    costs: ModelCosts,
    space: SearchSpace,
    setting: Setting,
    *,
    n_samples: int = 200,
    seed: int = 0,
    limits: Mapping[str, int] | None = None,
    progress: Progress = lambda *_: None,
) -> CostSample:
    """Draw designs at random and estimate the legal ones.

    Args:
        costs: Of the model.
        space: What to draw from.
        setting: How they would be trained.
        n_samples: How many to draw.
        seed: Of the draws; the same seed draws the same designs.
        limits: A budget, as amounts.
        progress: Told after each draw.

    Raises:
        DesignError: Fewer than one draw is asked for, or the sequences are too long for the model.
        SpaceError: The space is illegal on this model.
    """
    if n_samples < 1:
        raise DesignError(f"samples >= 1 must hold, but got samples={n_samples}")
    space, notes = leave_out_unsupported(space, costs.summary)
    space.check(costs.summary)
    costs.at(setting)  # sequences that are too long are an error, not an illegal draw
    drawn = list(draws(space, costs, n_samples, seed))
    costing = Costing(costs.at(setting), limits=limits)
    with costs.explaining():
        costing.learn(
            (draw.design for draw in drawn if not draw.violation),
            lambda done, total: progress("measuring what the designs are made of", done, total),
        )
    known: list[tuple[Design, Estimate]] = []
    illegal: Counter[str] = Counter()
    for index, draw in enumerate(drawn):
        progress(f"estimating designs of {space.name}", index, n_samples)
        try:
            with costs.explaining():
                estimate = costing.decide(_legal(draw))
        except DesignError as error:
            illegal[rule(error)] += 1
            continue
        if estimate.trainable_params:
            known.append((draw.design, estimate))
        else:
            illegal[NOTHING_TRAINS] += 1
    sample = CostSample(
        space=space.name,
        setting=setting,
        costs=tuple(known),
        n_illegal=dict(illegal.most_common()),
        limits=dict(limits or {}),
        notes=(*notes, *([f"every estimate took a dry run: {costing.obstacle}"] if costing.obstacle else [])),
    )
    return _with_extremes_of_record(sample, costs)


def _with_extremes_of_record(sample: CostSample, costs: ModelCosts) -> CostSample:
    """Return the sample with dry runs of the two designs that are shown."""
    shown = {design.key for design, _ in sample.extremes()}
    return replace(
        sample,
        costs=tuple(
            (design, costs.cost(design, sample.setting) if design.key in shown else estimate)
            for design, estimate in sample.costs
        ),
    )


def draws(space: SearchSpace, costs: ModelCosts, n_samples: int, seed: int) -> Iterable[Draw]:
    """Draw designs of a space at random, one after the other."""
    chooser = RandomChooser(random.Random(seed))
    return (space.draw(chooser, costs.summary) for _ in range(n_samples))


def rule(error: DesignError) -> str:
    """Return the rule that an error names, without the values that broke it: many draws break one rule."""
    return str(error).partition(", but got")[0].partition("; ")[0]


def _legal(draw: Draw) -> Design:
    if draw.violation:
        raise DesignError(draw.violation)
    return draw.design


def median(values: Sequence[tuple[Design, Estimate]]) -> tuple[Design, Estimate]:
    """Return the design whose peak memory is the (lower) median."""
    ranked = sorted(values, key=lambda pair: pair[1].peak_memory)
    return ranked[(len(ranked) - 1) // 2]
