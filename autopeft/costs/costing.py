"""Which estimate decides: the fast path's where it is clear, a dry run's near a limit, and for the record."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping

from autopeft.costs.estimator import Estimator
from autopeft.costs.fast import DRY_RUN, VERSION, FastEstimator
from autopeft.errors import DesignError
from autopeft.spec.cost import Estimate, excess
from autopeft.spec.design import Design
from autopeft.spec.space import SearchSpace

MARGIN = 0.05
"""What the fast path's memory and FLOPs are trusted to, about twice what was seen: nearer to a limit than this, only a
dry run decides. Parameters and the bytes of exports are exact."""
EXACT = ("trainable_params", "adapter_bytes")
N_WASTED = 3
"""Designs that only a dry run refused, after which a search learns the fast path: few searches refuse so many."""
N_CHECKED = 2
"""Designs at most whose dry runs must agree with the fast path before it decides anything on a model."""
N_WORTH_LEARNING = 20
"""Designs from which on it takes less time to learn what they are made of than to make their dry runs."""
NOTE_SECONDS = 3.0
"""Learning that takes longer is spoken of."""


class Costing:
    """What designs cost, with as few dry runs as that takes; called with a design, it makes one, for the record.

    Nothing is learned before it is needed.
    """

    def __init__(
        self, estimator: Estimator, *, limits: Mapping[str, int] | None = None, space: SearchSpace | None = None
    ) -> None:
        """Prepare for designs on an estimator's model, workload and machine.

        Args:
            estimator: Makes the dry runs.
            limits: What designs are held against, as amounts.
            space: What they will be drawn from: it is learned as a whole as soon as `lower_bound` is worth it.
        """
        self._full = estimator
        self._limits = dict(limits or {})
        self._space = space
        self._fast: FastEstimator | None = None
        self._n_wasted = 0
        self._is_learned = False

    @property
    def fast(self) -> FastEstimator:
        """Return the fast path."""
        if self._fast is None:
            self._fast = FastEstimator(self._full)
        return self._fast

    @property
    def obstacle(self) -> str:
        """Return why every design takes a dry run, or an empty string."""
        return self.fast.obstacle

    def __call__(self, design: Design) -> Estimate:
        """Return the estimate of record, by a dry run.

        Raises:
            DesignError: The design is illegal on this model.
        """
        estimate = self._full(design)
        over = excess(self._limits, estimate)
        self._n_wasted += over.pop("trainable_params", 0.0) <= 0 and any(value > 0 for value in over.values())
        return estimate

    def trainable_params(self, design: Design) -> int:
        """Return how many parameters train, exactly.

        Raises:
            DesignError: The design is illegal on this model.
        """
        return self.fast.trainable_params(design)

    def lower_bound(self, design: Design) -> Mapping[str, int]:
        """Return what a dry run surely says at least, by cost; see `autopeft.searching.plan.CostModel`.

        Memory and FLOPs are among them once dry runs have refused `N_WASTED` designs.

        Raises:
            DesignError: The design is illegal on this model, or leaves the longest input too few positions.
        """
        self._full.check(design)
        least = {"trainable_params": self.trainable_params(design)}
        is_over = least["trainable_params"] > self._limits.get("trainable_params", least["trainable_params"])
        if is_over or not self._limits.keys() - {"trainable_params"} or self._n_wasted < N_WASTED or self.obstacle:
            return least
        if not self._is_learned and self._space is not None:
            self.learn(self.fast.draw(self._space))
        if not self._is_learned:
            return least
        costs = self.fast(design)
        surely = 1.0 if costs.source == DRY_RUN else 1 - MARGIN
        least["adapter_bytes"] = costs.adapter_bytes
        for name in ("peak_memory", "train_flops", "inference_flops"):
            least[name] = int(surely * getattr(costs, name))
        return least

    def learn(self, designs: Iterable[Design], progress: Callable[[int, int], None] | None = None) -> None:
        """Measure the parts that designs are made of, so that they cost microseconds; for a few it does nothing.

        Args:
            designs: That will be asked about, or such as those.
            progress: Told how many parts are measured, and of how many; a note in the log by default, where it takes
                long.
        """
        designs = list(designs)
        if not self._is_learned and len(designs) < N_WORTH_LEARNING:
            return
        self.fast.learn(designs, progress or _note())
        if not self._is_learned:
            self._check(designs[:: len(designs) // N_CHECKED + 1])
        self._is_learned = True

    def _check(self, designs: Iterable[Design]) -> None:
        """Give the fast path up on a model where it is further from dry runs than it is trusted to be."""
        for design in designs:
            try:
                told, full = self.fast(design).peak_memory, self._full(design).peak_memory
            except DesignError:
                continue
            if abs(told / full - 1) > MARGIN:
                self.fast.obstacle = f"what parts add up to is {told / full - 1:+.0%} off a dry run on this model"

    def quick(self, design: Design) -> Estimate:
        """Return what the fast path says, or a dry run where it can't or has not learned: the `version` tells which.

        Raises:
            DesignError: The design is illegal on this model, or leaves the longest input too few positions.
        """
        return self.fast.estimate(design) if self._is_learned else self._full(design)

    def decide(self, design: Design) -> Estimate:
        """Return an estimate that surely says whether the design meets each limit: the fast path's, unless it is near.

        Raises:
            DesignError: The design is illegal on this model, or leaves the longest input too few positions.
        """
        estimate = self.quick(design)
        over = excess(self._limits, estimate)
        sure = any(value > (0 if name in EXACT else MARGIN) for name, value in over.items())
        near = any(abs(value) <= MARGIN for name, value in over.items() if name not in EXACT)
        return self._full(design) if estimate.version == VERSION and near and not sure else estimate


def _note() -> Callable[[int, int], None]:
    """Return what says once that learning takes long."""
    started, told = time.monotonic(), False

    def note(done: int, total: int) -> None:
        nonlocal told
        seconds = time.monotonic() - started
        if seconds > NOTE_SECONDS and done and not told:
            told = True
            logging.getLogger("autopeft").warning(
                "measuring what the techniques of the space take on this model, once, so that designs over the budget "
                f"cost no time later: about {seconds / done * (total - done):.0f} s more"
            )

    return note
