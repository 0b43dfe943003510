"""What the memory of a step is made of: by module and kind at the peak, and as it rises and falls."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from autopeft.estimation.dry_run import StepCost
from autopeft.estimation.tracker import Category

Phase = Literal["forward", "backward", "optimizer", "evaluation"]


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Where the memory of a design goes.

    Attributes:
        training: The cost of a training step.
        evaluation: The cost of an evaluation step.
        timeline: Live bytes by category, whenever they rose or fell: through the training step, then through
            the evaluation step; each with its phase. As many points as there are changes.
        peak_at: Index in `timeline` of the first of its highest points.
        by_module: What is alive at that point: module, category and bytes, the largest first. A module is named
            by role where it has one (`layers.*.mlp_up`), otherwise by its path, with all layers as one;
            `loss`, `optimizer` and `inputs` are what no module made.
    """

    training: StepCost
    evaluation: StepCost
    timeline: tuple[tuple[Phase, Mapping[Category, int]], ...]
    peak_at: int
    by_module: tuple[tuple[str, Category, int], ...]

    @property
    def peak_phase(self) -> Phase:
        """Return the phase of the peak."""
        return self.timeline[self.peak_at][0]
