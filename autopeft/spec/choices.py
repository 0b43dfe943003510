"""The choices that a search space is made of: of values, and of layers."""

import itertools
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from autopeft.spec.block import Layers

GroupShape = Literal["uniform", "increasing", "decreasing", "spindle", "bottleneck"]
"""How many layers the groups have: as many each, ever more, ever fewer, fewer at both ends, or more at both ends."""
GROUP_SHAPES: tuple[GroupShape, ...] = get_args(GroupShape)


@dataclass(frozen=True)
class Choice:
    """One of some options; a single option is a constant."""

    options: tuple[Any, ...]

    def count(self, n_layers: int) -> float:
        """Return how many values there are."""
        return len(self.options)

    def extremes(self, n_layers: int) -> tuple[Any, ...]:
        """Return values such that a rule that holds for them holds for all: every option."""
        return self.options

    def least(self, n_layers: int) -> Any:
        """Return the smallest number above 0 among the options; 1 where there is none."""
        return min((option for option in self.options if isinstance(option, int | float) and option > 0), default=1)

    def fewest(self, n_layers: int) -> Layers:
        """Return the shortest option, where the options are layers."""
        options: tuple[Layers, ...] = self.options
        return min(options, key=lambda layers: n_layers if layers == "all" else len(layers))

    def may_be_empty(self, n_layers: int) -> bool:
        """Return False, where the options are layers: each has some."""
        return False


@dataclass(frozen=True, kw_only=True)
class Range:
    """A number between two bounds, both included; `"n"` stands for the number of layers."""

    low: float | str
    high: float | str
    log: bool = False
    integer: bool = False

    def bounds(self, n_layers: int) -> tuple[float, float]:
        """Return both bounds as numbers."""
        low, high = (n_layers if bound == "n" else bound for bound in (self.low, self.high))
        return low, high  # type: ignore[return-value]

    def count(self, n_layers: int) -> float:
        """Return how many values there are: infinite for real numbers."""
        low, high = self.bounds(n_layers)
        if low == high:
            return 1
        return high - low + 1 if self.integer else math.inf

    def extremes(self, n_layers: int) -> tuple[Any, ...]:
        """Return values such that a rule that holds for them holds for all: both bounds."""
        return self.bounds(n_layers)

    def least(self, n_layers: int) -> float:
        """Return the smallest value above 0; the upper bound where a real number can be 0."""
        low, high = self.bounds(n_layers)
        return low if low > 0 else 1 if self.integer else high


Param = Choice | Range


@dataclass(frozen=True)
class AllLayers:
    """Every layer."""

    def count(self, n_layers: int) -> float:
        """Return how many sets of layers there are."""
        return 1

    def fewest(self, n_layers: int) -> Layers:
        """Return the smallest set of layers above none."""
        return "all"

    def may_be_empty(self, n_layers: int) -> bool:
        """Return False."""
        return False


@dataclass(frozen=True)
class AnyLayers:
    """Any subset of the layers, each in or out by itself."""

    def count(self, n_layers: int) -> float:
        """Return how many sets of layers there are."""
        return int(2**n_layers)

    def fewest(self, n_layers: int) -> tuple[int, ...]:
        """Return the smallest set of layers above none."""
        return (n_layers - 1,)

    def may_be_empty(self, n_layers: int) -> bool:
        """Return True: every layer can be out."""
        return True


@dataclass(frozen=True)
class LastLayers:
    """The last layers, those nearest to the output; `counts` says how many."""

    counts: Param

    def count(self, n_layers: int) -> float:
        """Return how many sets of layers there are."""
        return self.counts.count(n_layers)

    def fewest(self, n_layers: int) -> tuple[int, ...]:
        """Return the smallest set of layers above none."""
        return tuple(range(n_layers - int(self.counts.least(n_layers)), n_layers))

    def may_be_empty(self, n_layers: int) -> bool:
        """Return whether none of the layers is a choice."""
        return any(count == 0 for count in self.counts.extremes(n_layers))

    def check(self, n_layers: int) -> None:
        """Raise ValueError where more layers are asked for than there are."""
        for count in self.counts.extremes(n_layers):
            if not 0 <= count <= n_layers:
                raise ValueError(f"0 <= last <= n_layers must hold, but got last={count}, n_layers={n_layers}")


@dataclass(frozen=True)
class Groups:
    """`number` runs of neighbouring layers, each with a size of its own.

    Source: the shapes are those that Chen et al. 2023 (arXiv:2301.01821) compare; the proportions are
    ours: a middle group of a spindle is twice as long as an outer one.

    Attributes:
        shape: How many layers each group has.
        only: The groups that can have the block, counted from 0; None for all.
    """

    number: int
    shape: GroupShape = "uniform"
    only: tuple[int, ...] | None = None

    def count(self, n_layers: int) -> float:
        """Return how many sets of layers there are: one, the sizes differ."""
        return 1

    def split(self, n_layers: int) -> dict[int, tuple[int, ...]]:
        """Return the layers of each group that can have the block, by the group's number."""
        edges = [0, *itertools.accumulate(self._lengths(n_layers))]
        groups = enumerate(itertools.pairwise(edges))
        return {i: tuple(range(a, b)) for i, (a, b) in groups if self.only is None or i in self.only}

    def _lengths(self, n_layers: int) -> list[int]:
        """Return how many layers each group has: its share, rounded so that no layer is left over."""
        if self.shape == "uniform":
            edges = [n_layers * i // self.number for i in range(self.number + 1)]
            return [b - a for a, b in itertools.pairwise(edges)]
        weights = [self._weight(i) for i in range(self.number)]
        shares = [n_layers * weight / sum(weights) for weight in weights]
        lengths = [max(1, int(share)) for share in shares]
        while sum(lengths) < n_layers:  # a tie goes to the group nearer to the output
            lengths[max(range(self.number), key=lambda i: (shares[i] - lengths[i], i))] += 1
        while sum(lengths) > n_layers:
            lengths[max(range(self.number), key=lambda i: (lengths[i] > 1, lengths[i] - shares[i]))] -= 1
        return lengths

    def _weight(self, index: int) -> int:
        outer = index in (0, self.number - 1)
        match self.shape:
            case "uniform":
                return 1
            case "increasing":
                return index + 1
            case "decreasing":
                return self.number - index
            case "spindle":
                return 1 if outer else 2
            case "bottleneck":
                return 2 if outer else 1

    def every(self, n_layers: int) -> tuple[int, ...]:
        """Return the layers of all groups that can have the block."""
        return tuple(itertools.chain.from_iterable(self.split(n_layers).values()))

    def fewest(self, n_layers: int) -> tuple[int, ...]:
        """Return the smallest group: the others can have size 0, where the sizes have it."""
        return min(self.split(n_layers).values(), key=len)

    def may_be_empty(self, n_layers: int) -> bool:
        """Return False: a group is left out by its size."""
        return False

    def check(self, n_layers: int) -> None:
        """Raise ValueError where there are fewer layers than groups."""
        if self.number > n_layers:
            raise ValueError(f"groups <= n_layers must hold, but got groups={self.number}, n_layers={n_layers}")


@dataclass(frozen=True)
class SameAs:
    """The layers that another block of the space has drawn."""

    block: str

    def count(self, n_layers: int) -> float:
        """Return how many sets of layers there are: none of its own."""
        return 1

    def may_be_empty(self, n_layers: int) -> bool:
        """Return False: not by a choice of its own."""
        return False


OwnLayers = AllLayers | AnyLayers | LastLayers | Groups | Choice
LayerRule = OwnLayers | SameAs
