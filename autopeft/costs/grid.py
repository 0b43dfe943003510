"""From the intervals that a profile has to the fewer ones of which steps are put together.

A map of a layer is seen in three intervals: what is done before it multiplies, the multiplication, and what is done
after it. They are told as one: what they leave behind together, and the highest point of all.
"""

from collections.abc import Sequence

import numpy as np

from autopeft.costs.curve import Bytes, Curve
from autopeft.costs.share import BACKWARD, NOWHERE


class Grid:
    """Neighbouring intervals that are told as one; arrays are [..., passes, intervals]."""

    def __init__(self, starts: Sequence[int], n_stretches: int) -> None:
        """Say with which of so many intervals each group begins."""
        self._starts = list(starts)
        self._ends = [*self._starts[1:], n_stretches]
        self._groups = np.repeat(np.arange(len(self._starts)), np.subtract(self._ends, self._starts))

    def group(self, interval: int) -> int:
        """Return the group that a interval is in."""
        return int(self._groups[interval])

    def sums(self, values: Bytes) -> Bytes:
        """Return what comes together in each group."""
        found: Bytes = np.add.reduceat(values, self._starts, axis=-1)
        return found

    def told(self, curve: Curve, growth: Curve) -> tuple[Curve, Curve]:
        """Return the curve of a model, and how it grows, by group."""
        tops, growths = self._levels(curve.net) + curve.high, self._levels(growth.net) + growth.high
        return self._curves(curve, growth, *self._highest(tops, growths))

    def added(
        self, curve: Curve, growth: Curve, model: tuple[Curve, Curve], told: tuple[Curve, Curve]
    ) -> tuple[Curve, Curve]:
        """Return what a block adds to a model, and how that grows, by group; `told` is what is told of the model.

        How far it goes above the model counts where something of the block is there: it is below zero where the
        model's highest point comes before the block does anything.
        """
        own, own_growth = model
        before, before_growth = self._levels(curve.net), self._levels(growth.net)
        level = self._levels(own.net) + before
        tops = np.where((before != 0) | (curve.high > 0), level + own.high + curve.high, NOWHERE)
        tops = np.where((before != 0) | (curve.net != 0), np.maximum(tops, level + own.net + curve.net), tops)
        growths = self._levels(own_growth.net) + before_growth + own_growth.high + growth.high
        high, high_growth = self._highest(tops, growths)
        there = high > NOWHERE
        high = np.where(there, high - told[0].high, NOWHERE)
        return self._curves(curve, growth, high, np.where(there, high_growth - told[1].high, 0.0))

    def _curves(self, curve: Curve, growth: Curve, high: Bytes, high_growth: Bytes) -> tuple[Curve, Curve]:
        return (
            Curve(net=self.sums(curve.net), high=high, flops=self.sums(curve.flops)),
            Curve(net=self.sums(growth.net), high=high_growth, flops=self.sums(growth.flops)),
        )

    def _levels(self, net: Bytes) -> Bytes:
        """Return what is there before each interval, above what is there when its group begins."""
        before = net.cumsum(axis=-1) - net
        before[BACKWARD] = net[BACKWARD].sum() - before[BACKWARD] - net[BACKWARD]
        first = np.array([self._starts] * len(net))
        first[BACKWARD] = np.array(self._ends) - 1
        level: Bytes = before - np.take_along_axis(before, first, axis=-1)[:, self._groups]
        return level

    def _highest(self, tops: Bytes, growths: Bytes) -> tuple[Bytes, Bytes]:
        """Return the highest point of each group, and how that one grows."""
        at = np.stack([a + tops[:, a:b].argmax(axis=1) for a, b in zip(self._starts, self._ends, strict=True)], axis=1)
        return np.take_along_axis(tops, at, axis=1), np.take_along_axis(growths, at, axis=1)
