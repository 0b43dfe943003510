"""What blocks add to a layer, and what the model itself needs, as values; `autopeft.estimation.shares` learns them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from autopeft.estimation.profile import Bytes

FORWARD, BACKWARD, EVALUATION = range(3)
INSIDE = slice(1, -1)
"""The stretches of a layer, of all that a profile has."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one block adds to a layer that it is in.

    Attributes:
        net: What stretches leave behind, [forward, backward, evaluation] x the stretches of a layer.
        high: How far they go above what the layer itself needs; the same shape.
        flops: What they compute besides; [all, attention] x the same shape.
        keeps: Whether it keeps the input of a map for the backward pass, by group of maps that read the same.
        reads: Whether it keeps the input of a map, by map.
        diverts: Whether it changes the input of a map before the blocks that were attached earlier read it, by map.
        turn: When it is attached, among the blocks of a layer.
        first: The stretch from which on something that it brings needs a gradient.
        computes: Whether the layer's own backward pass computes a stretch where nothing below trains.
    """

    net: Bytes
    high: Bytes
    flops: Bytes
    keeps: Bytes
    reads: Bytes
    diverts: Bytes
    turn: tuple[int, str]
    first: int
    computes: Bytes

    def mix(self, other: "Share", weight: float) -> "Share":
        """Return what lies between two sizes of a block, or beyond them."""
        return replace(
            self,
            net=self.net + weight * (other.net - self.net),
            high=np.maximum(self.high + weight * (other.high - self.high), 0),
            flops=self.flops + weight * (other.flops - self.flops),
        )

    def moved(self, start: "Share", end: "Share") -> "Share":
        """Return the share after the step that leads from one share of another model to a second one."""
        return replace(
            self,
            net=self.net + end.net - start.net,
            high=np.maximum(self.high + end.high - start.high, 0),
            flops=self.flops + end.flops - start.flops,
        )


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The model itself, at one length of its sequences.

    Attributes:
        net: Like a profile's: with the stretches before and after the layers.
        high: The same shape.
        flops: Like a profile's.
        tokens: Length of the sequences, relative to that without a prompt.
    """

    net: Bytes
    high: Bytes
    flops: Bytes
    tokens: float = 1.0

    @cached_property
    def layer_flops(self) -> Bytes:
        """Return those of a layer, [all, attention] x passes."""
        total: Bytes = self.flops[:, :, INSIDE].sum(axis=-1)
        return total

    @cached_property
    def outer_flops(self) -> Bytes:
        """Return those before and after the layers, [all, attention] x passes."""
        total: Bytes = self.flops.sum(axis=-1) - self.layer_flops
        return total

    def mix(self, other: "Frame", weight: float) -> "Frame":
        """Return what lies between two lengths, or beyond them."""
        return Frame(
            net=self.net + weight * (other.net - self.net),
            high=self.high + weight * (other.high - self.high),
            flops=self.flops + weight * (other.flops - self.flops),
            tokens=self.tokens + weight * (other.tokens - self.tokens),
        )

    def moved(self, start: "Frame", end: "Frame") -> "Frame":
        """Return the frame after the step that leads from one frame of another model to a second one."""
        return Frame(
            net=self.net + end.net - start.net,
            high=self.high + end.high - start.high,
            flops=self.flops + end.flops - start.flops,
            tokens=self.tokens + end.tokens - start.tokens,
        )


@dataclass(frozen=True, kw_only=True)
class ShareTable:
    """All shares that are known, one upon the other, so that a design picks its own by their numbers."""

    net: Bytes
    high: Bytes
    flops: Bytes
    keeps: Bytes
    reads: Bytes
    computes: Bytes

    @classmethod
    def of(cls, shares: Sequence[Share]) -> "ShareTable":
        """Stack shares; FLOPs are summed over stretches."""
        return cls(
            net=np.stack([share.net for share in shares]),
            high=np.stack([share.high for share in shares]),
            flops=np.stack([share.flops.sum(axis=-1) for share in shares]),
            keeps=np.stack([share.keeps for share in shares]),
            reads=np.stack([share.reads for share in shares]),
            computes=np.stack([share.computes for share in shares]),
        )
