"""What blocks add to a layer, and what the model itself needs, as values; `autopeft.costs.shares` learns them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from autopeft.costs.curve import INSIDE, Bytes, Curve

FORWARD, BACKWARD, EVALUATION = range(3)
NOWHERE = -1e18
"""Bytes above the model's highest point of a block that is not there."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one block adds to a layer that it is in.

    Attributes:
        curve: What intervals leave behind, how far they go above what the layer itself needs, and what they compute
            besides; [forward, backward, evaluation] x the intervals of a layer.
        growth: The part of it that grows with the length of the sequences.
        keeps: Whether it keeps the input of a map for the backward pass, by group of maps that read the same.
        reads: Whether it keeps the input of a map, by map.
        diverts: Whether it changes the input of a map before the blocks that were attached earlier read it, by map.
        turn: When it is attached, among the blocks of a layer.
        first: The interval from which on something that it brings needs a gradient.
        reads_weights: Whether it does something with the weights of the maps themselves, so that it costs something
            else where they are stored in another way.
        computes: Whether the layer's own backward pass computes a interval where nothing below trains.
    """

    curve: Curve
    growth: Curve
    keeps: Bytes
    reads: Bytes
    diverts: Bytes
    turn: tuple[int, str]
    first: int
    computes: Bytes
    reads_weights: bool

    def mix(self, other: "Share", weight: float) -> "Share":
        """Return what lies between two sizes of a block, or beyond them."""
        return self._with(weight, end=other, start=self)

    def moved(self, start: "Share", end: "Share") -> "Share":
        """Return the share after the step that leads from one share of another model to a second one."""
        return self._with(1.0, end=end, start=start)

    def _with(self, weight: float, *, end: "Share", start: "Share") -> "Share":
        curve = self.curve.plus(end.curve, weight).plus(start.curve, -weight)
        curve.high = np.maximum(curve.high, 0)
        return replace(self, curve=curve, growth=self.growth.plus(end.growth, weight).plus(start.growth, -weight))


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The model itself, at one length of its sequences.

    Attributes:
        curve: Like a profile's: with the intervals before and after the layers.
        growth: The part of it that grows with the length of the sequences.
        tokens: Length of the sequences, relative to that without a prompt.
    """

    curve: Curve
    growth: Curve
    tokens: float = 1.0

    @cached_property
    def layer_flops(self) -> Bytes:
        """Return those of a layer, [all, attention] x passes."""
        total: Bytes = self.curve.flops[:, :, INSIDE].sum(axis=-1)
        return total

    @cached_property
    def outer_flops(self) -> Bytes:
        """Return those before and after the layers, [all, attention] x passes."""
        total: Bytes = self.curve.flops.sum(axis=-1) - self.layer_flops
        return total

    def mix(self, other: "Frame", weight: float) -> "Frame":
        """Return what lies between two lengths, or beyond them."""
        return Frame(
            curve=self.curve.plus(other.curve, weight).plus(self.curve, -weight),
            growth=self.growth.plus(other.growth, weight).plus(self.growth, -weight),
            tokens=self.tokens + weight * (other.tokens - self.tokens),
        )

    def moved(self, start: "Frame", end: "Frame") -> "Frame":
        """Return the frame after the step from one storage of the model to another, both at their own length."""
        longer = self.tokens - start.tokens
        curve = self.curve.plus(end.curve).plus(start.curve, -1)
        curve = curve.plus(end.growth, longer).plus(start.growth, -longer)
        return Frame(curve=curve, growth=self.growth.plus(end.growth).plus(start.growth, -1), tokens=self.tokens)


@dataclass(frozen=True, kw_only=True)
class ShareTable:
    """All shares that are known, one upon the other, so that a design picks its own by their numbers.

    Attributes:
        curve: Of the shares, [shares, ...]; FLOPs are summed over intervals.
        growth: The same shapes.
    """

    curve: Curve
    growth: Curve
    keeps: Bytes
    reads: Bytes
    computes: Bytes

    @classmethod
    def of(cls, shares: Sequence[Share]) -> "ShareTable":
        """Stack shares."""
        return cls(
            curve=_stacked([share.curve for share in shares]),
            growth=_stacked([share.growth for share in shares]),
            keeps=np.stack([share.keeps for share in shares]),
            reads=np.stack([share.reads for share in shares]),
            computes=np.stack([share.computes for share in shares]),
        )

    def with_more(self, shares: Sequence[Share]) -> "ShareTable":
        """Return a table that goes on with further shares."""
        more = ShareTable.of(shares)
        return ShareTable(
            curve=_joined(self.curve, more.curve),
            growth=_joined(self.growth, more.growth),
            keeps=np.concatenate([self.keeps, more.keeps]),
            reads=np.concatenate([self.reads, more.reads]),
            computes=np.concatenate([self.computes, more.computes]),
        )


def _stacked(curves: Sequence[Curve]) -> Curve:
    return Curve(
        net=np.stack([curve.net for curve in curves]),
        high=np.stack([curve.high for curve in curves]),
        flops=np.stack([curve.flops.sum(axis=-1) for curve in curves]),
    )


def _joined(one: Curve, two: Curve) -> Curve:
    net, high, flops = (np.concatenate(pair) for pair in zip(vars(one).values(), vars(two).values(), strict=True))
    return Curve(net=net, high=high, flops=flops)
