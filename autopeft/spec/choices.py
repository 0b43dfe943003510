"""The choices that a search space is made of: of values, and of layers."""

import itertools
import math
from dataclasses import dataclass
from typing import Any

from autopeft.spec.block import Layers


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

    def fewest(self, n_layers: int) -> Layers:
        """Return the shortest option, where the options are layers."""
        options: tuple[Layers, ...] = self.options
        return min(options, key=lambda layers: n_layers if layers == "all" else len(layers))


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


@dataclass(frozen=True)
class AnyLayers:
    """Any subset of the layers, each in or out by itself."""

    def count(self, n_layers: int) -> float:
        """Return how many sets of layers there are."""
        return float(2**n_layers)

    def fewest(self, n_layers: int) -> tuple[int, ...]:
        """Return the smallest set of layers above none."""
        return (n_layers - 1,)


@dataclass(frozen=True)
class LastLayers:
    """The last layers, those nearest to the output; `counts` says how many."""

    counts: Param

    def count(self, n_layers: int) -> float:
        """Return how many sets of layers there are."""
        return self.counts.count(n_layers)

    def fewest(self, n_layers: int) -> tuple[int, ...]:
        """Return the smallest set of layers above none."""
        smallest = min(count for count in self.counts.extremes(n_layers) if count)
        return tuple(range(n_layers - int(smallest), n_layers))

    def check(self, n_layers: int) -> None:
        """Raise ValueError where more layers are asked for than there are."""
        for count in self.counts.extremes(n_layers):
            if not 0 <= count <= n_layers:
                raise ValueError(f"0 <= last <= n_layers must hold, but got last={count}, n_layers={n_layers}")


@dataclass(frozen=True)
class Groups:
    """`number` runs of neighbouring layers, as equal as can be, each with a size of its own."""

    number: int

    def count(self, n_layers: int) -> float:
        """Return how many sets of layers there are: one, the sizes differ."""
        return 1

    def split(self, n_layers: int) -> list[tuple[int, ...]]:
        """Return the layers of each group; the later groups take what does not divide evenly."""
        edges = [n_layers * i // self.number for i in range(self.number + 1)]
        return [tuple(range(a, b)) for a, b in itertools.pairwise(edges)]

    def fewest(self, n_layers: int) -> tuple[int, ...]:
        """Return the smallest group: the others can have size 0, where the sizes have it."""
        return min(self.split(n_layers), key=len)

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


OwnLayers = AllLayers | AnyLayers | LastLayers | Groups | Choice
LayerRule = OwnLayers | SameAs
