"""Live bytes and operations of a step by interval, with the parts of both that depend on lengths and on a size.

What is made of the batch grows with the length of the sequences, and what is made of that; not so what has the shape
of a weight, or of something that was made of weights alone: those are its gradients.

What grows with the size of a block is told by a factor: the block is attached at a size that is a prime number and
divides no other dimension, so that bytes and operations which it divides are in proportion to the size.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from autopeft.costs.curve import Bytes, Curve
from autopeft.costs.intervals import Intervals
from autopeft.costs.kernels import is_attention
from autopeft.costs.tracker import DEVICE, Category, StorageTracker

_N_KINDS = 4
_ALL, _SIZED, _GROWING, _GROWING_SIZED = range(_N_KINDS)


@dataclass(frozen=True, kw_only=True)
class Record:
    """What happened in the intervals of a step.

    Intervals of the backward pass are counted after those of the forward pass. Bytes and operations are of four kinds:
    all, those in proportion to the size, those that grow with the length, those that do both.

    Attributes:
        n_stretches: Of each pass.
        points: What was there above the start of the interval, whenever that changed, [points, kinds].
        of: The interval of each point.
        left: What intervals left behind, [2 * n_stretches, kinds].
        flops: Operations, [2 * n_stretches, kinds, all of them and those of attention].
    """

    n_stretches: int
    points: Bytes
    of: Any
    left: Bytes
    flops: Bytes

    def curves(self, ratio: float = 1.0) -> tuple[Curve, Curve]:
        """Return the curve of both passes, [passes, intervals], and its growth, at so many times the size."""
        found = []
        above, grows = (_at(self.points, kind, ratio) for kind in (_ALL, _GROWING))
        best = self._highest(above)
        for kind, values in ((_ALL, above), (_GROWING, grows)):
            high = np.zeros(2 * self.n_stretches)
            high[self.of[best]] = values[best]
            curve = Curve(
                net=self._by_pass(_at(self.left, kind, ratio)),
                high=self._by_pass(high),
                flops=np.moveaxis(self._by_pass(_at(self.flops, kind, ratio)), -1, 0),
            )
            found.append(curve)
        return found[0], found[1]

    def _highest(self, above: Bytes) -> Any:
        """Return the first of the highest points of each interval that goes above its start."""
        points = np.flatnonzero(above > 0)
        points = points[np.lexsort((-points, above[points], self.of[points]))]
        return points[np.flatnonzero(np.diff(self.of[points], append=-1))]

    def _by_pass(self, values: Bytes) -> Bytes:
        return values.reshape(2, self.n_stretches, *values.shape[1:])


def _at(values: Bytes, kind: int, ratio: float) -> Bytes:
    """Return all bytes, or all that grow, at so many times the size."""
    found: Bytes = values[:, kind] + (ratio - 1) * values[:, kind + 1]
    return found


class IntervalTracker(StorageTracker):  # type: ignore[no-untyped-call]
    """Follow what a step does, interval by interval."""

    def __init__(self, *, intervals: Intervals, factor: int | None = None, **settings: Any) -> None:
        """Start at zero.

        Args:
            intervals: Say where the step is.
            factor: The size of a block, where it is to be told what is in proportion to it.
            settings: Those of `StorageTracker`.
        """
        super().__init__(**settings)
        self._stretches = intervals
        self._factor = factor
        self._at: int | None = None
        self._weights: set[tuple[int, ...]] = set()
        self._sized: set[int] = set()
        self._growing: set[int] = set()
        self._reads_sized = self._grows = False
        self._now = [0] * _N_KINDS
        self._start = [0] * _N_KINDS
        self._points: list[tuple[int, ...]] = []
        self._of: list[int] = []
        self._left = np.zeros((2 * intervals.n_stretches, _N_KINDS))
        self._flops_by_stretch = np.zeros((2 * intervals.n_stretches, _N_KINDS, 2))
        self.first_bytes = 0

    def register(self, tensors: Iterable[torch.Tensor], category: Category) -> None:
        """Count what is there before the step: weights and the batch."""
        tensors = list(tensors)
        super().register(tensors, category)
        for tensor in tensors:
            if category == "activations":
                self._grow(tensor)
            else:
                self._weights.update((tuple(tensor.shape), tuple(reversed(tensor.shape))))

    def __enter__(self) -> Any:
        """Start from what is registered."""
        self.first_bytes = self._total_bytes
        self._start = self._now.copy()
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator in its interval."""
        if func is DEVICE:
            return super().__torch_dispatch__(func, types, args, kwargs)
        is_backward, place = self._stretches.here()
        here = place + is_backward * self._stretches.n_stretches
        if here != self._at:
            self._settle_sum()
            self.close()
            self._at = here
        storages = list(_storages(args))
        self._stretches.see(storages)
        self._grows = not self._growing.isdisjoint(storages)
        self._reads_sized = not self._sized.isdisjoint(storages)
        return super().__torch_dispatch__(func, types, args, kwargs)

    def close(self) -> None:
        """End the present interval."""
        if self._at is not None:
            self._left[self._at] += np.subtract(self._now, self._start)
        self._start = self._now.copy()

    def record(self) -> Record:
        """Return what happened; after `close`."""
        return Record(
            n_stretches=self._stretches.n_stretches,
            points=np.array(self._points, dtype=float).reshape(-1, _N_KINDS),
            of=np.array(self._of, dtype=int),
            left=self._left,
            flops=self._flops_by_stretch,
        )

    def _is_sized(self, number: int) -> bool:
        return self._factor is not None and number % self._factor == 0

    def _count(self, packet: Any, n_flops: int) -> None:
        super()._count(packet, n_flops)
        if self._at is not None:
            is_sized = self._reads_sized and self._is_sized(n_flops)
            kinds = (True, is_sized, self._grows, self._grows and is_sized)
            self._flops_by_stretch[self._at] += np.outer(kinds, (n_flops, n_flops * is_attention(packet)))

    def _follow(self, tensor: torch.Tensor) -> None:
        super()._follow(tensor)
        shape = tuple(tensor.shape)
        if not self._grows:
            self._weights.update((shape, tuple(reversed(shape))))
        elif shape not in self._weights:
            self._grow(tensor)

    def _add(self, storage: torch.UntypedStorage, category: Category) -> None:
        super()._add(storage, category)
        key = storage._cdata
        n_bytes = self._storages[key].n_bytes
        self._now[_ALL] += n_bytes
        if self._is_sized(n_bytes):
            self._sized.add(key)
            self._now[_SIZED] += n_bytes

    def _grow(self, tensor: torch.Tensor) -> None:
        key = tensor.untyped_storage()._cdata
        if key not in self._growing:
            self._growing.add(key)
            self._now[_GROWING] += self._storages[key].n_bytes
            if key in self._sized:
                self._now[_GROWING_SIZED] += self._storages[key].n_bytes

    def _forget(self, key: int) -> None:
        n_bytes, is_sized, grew = self._storages[key].n_bytes, key in self._sized, key in self._growing
        super()._forget(key)
        self._sized.discard(key)
        self._growing.discard(key)
        for kind, counts in enumerate((True, is_sized, grew, grew and is_sized)):
            if counts:
                self._now[kind] -= n_bytes

    def _note(self, total_bytes: int, scratch_bytes: int = 0) -> None:
        if self._at is not None:
            above = [now - start for now, start in zip(self._now, self._start, strict=True)]
            above[_ALL] = total_bytes + scratch_bytes - self._start[_ALL]
            if scratch_bytes and self._reads_sized and self._is_sized(scratch_bytes):
                above[_SIZED] += scratch_bytes
            self._points.append(tuple(above))
            self._of.append(self._at)


def _storages(values: Iterable[Any]) -> Iterator[int]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value.untyped_storage()._cdata
        elif isinstance(value, tuple | list):
            yield from _storages(value)
