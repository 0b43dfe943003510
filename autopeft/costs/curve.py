"""Memory and operations over the intervals of a step, as plain arrays."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.float64]
INSIDE = slice(1, -1)
"""The intervals of a layer, of all that a profile has."""


@dataclass(kw_only=True)
class Curve:
    """Passes by interval, [..., intervals].

    Attributes:
        net: Bytes left behind.
        high: Bytes of the highest point above the start.
        flops: Floating-point operations, [all of them, those of attention] x the same shape.
    """

    net: Bytes
    high: Bytes
    flops: Bytes

    def joined(self, other: "Curve") -> "Curve":
        """Return the passes of this one, and then those of another."""
        return Curve(
            net=np.concatenate([self.net, other.net]),
            high=np.concatenate([self.high, other.high]),
            flops=np.concatenate([self.flops, other.flops], axis=1),
        )

    def passes(self, chosen: slice) -> "Curve":
        """Return some of the passes."""
        return Curve(net=self.net[chosen], high=self.high[chosen], flops=self.flops[:, chosen])

    def plus(self, other: "Curve", weight: float = 1.0) -> "Curve":
        """Return the sum with so many times another."""
        return Curve(
            net=self.net + weight * other.net,
            high=self.high + weight * other.high,
            flops=self.flops + weight * other.flops,
        )

    def masked(self, mask: Bytes) -> "Curve":
        """Return the part in some of the intervals."""
        return Curve(net=self.net * mask, high=self.high * mask, flops=self.flops * mask)

    def inside(self) -> "Curve":
        """Return the intervals of the layer, without those before and after it."""
        return Curve(net=self.net[..., INSIDE], high=self.high[..., INSIDE], flops=self.flops[..., INSIDE])
