"""Exact sizes of what designs bring, block by block: parameters that train, their bytes, what the optimizer keeps.

A block is attached once in one layer and once in two layers of a model that has no more: what the second adds is what
each layer gets, the rest comes once. Tensors outside of the layers are known by name, because blocks may share them.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from autopeft.estimation.dry_run import Machine
from autopeft.estimation.optimizers import state_bytes
from autopeft.estimation.shortened import layers_path, shorten
from autopeft.models.attach import Attached, attach
from autopeft.models.base import Base
from autopeft.spec.block import Block
from autopeft.spec.design import Design

_UNNAMED = "/"
"""What the names of tensors begin with that are no part of the model."""
_LARGE = 2**20
Sizes = NDArray[np.int64]
"""Parameters that train, bytes of all tensors, bytes that the optimizer and the techniques keep for training."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one block brings.

    Attributes:
        each: To every layer that it is in.
        once: However many layers it is in.
        shared: Outside of the layers, by name: once for all blocks that bring it.
    """

    each: Sizes
    once: Sizes
    shared: Mapping[str, Sizes] = field(default_factory=dict)


class Parts:
    """The sizes of blocks, measured by attaching them when they are first asked for."""

    def __init__(self, base: Base, machine: Machine) -> None:
        """Measure what trains without any block.

        Args:
            base: Unquantized, on the meta device, with layers of equal shape.
            machine: Whose optimizer it is.
        """
        self._base = shorten(base, 2)
        self._inside = f"{layers_path(base)}."
        self._machine = machine
        self._n_layers = base.summary.n_layers
        self._parts: dict[Hashable, Part] = {}
        head = self._attach(())
        self.head = _sum(head.values())
        self._head_names = head.keys()

    def total(self, blocks: Sequence[Block], keys: Sequence[Hashable]) -> Sizes:
        """Return the sizes of a design's blocks and of what always trains.

        Args:
            blocks: Of a design.
            keys: `without_layers` of each.

        Raises:
            DesignError: A block can't be attached to the shortened model.
        """
        total = self.head.copy()
        shared: dict[str, Sizes] = {}
        for block, key in zip(blocks, keys, strict=True):
            part = self._parts.get(key) or self.part(block)
            total += part.once
            if not block.whole_model:
                total += part.each * (self._n_layers if block.layers == "all" else len(block.layers))
            for name, sizes in part.shared.items():
                shared[name] = np.maximum(shared[name], sizes) if name in shared else sizes
        for sizes in shared.values():
            total += sizes
        return total

    def part(self, block: Block) -> Part:
        """Return the sizes of one block, whatever its layers."""
        key = without_layers(block)
        if key not in self._parts:
            self._parts[key] = self._measure(block)
        return self._parts[key]

    def _measure(self, block: Block) -> Part:
        if block.whole_model:
            found = self._attach((block,))
            return Part(each=_sum(()), once=_sum(found.values()) - self.head)
        one, two = (self._attach((block.model_copy(update={"layers": layers}),)) for layers in ((0,), (0, 1)))
        own = {name: sizes for name, sizes in one.items() if name not in self._head_names}
        shared = {name: sizes for name, sizes in own.items() if not name.startswith((self._inside, _UNNAMED))}
        each = _sum(two.values()) - _sum(one.values())
        return Part(each=each, once=_sum(one.values()) - self.head - each - _sum(shared.values()), shared=shared)

    def _attach(self, blocks: tuple[Block, ...]) -> dict[str, Sizes]:
        """Return the sizes of every tensor that a design brings, by name; what has none of its own is under ""."""
        with torch.device("meta"):
            attached = attach(self._base, Design(blocks=blocks))
        with attached:
            return _tensors(attached, self._machine)


def _tensors(attached: Attached, machine: Machine) -> dict[str, Sizes]:
    names = {id(t): name for name, t in [*attached.model.named_parameters(), *attached.model.named_buffers()]}
    kept = sum(tensor.numel() * tensor.itemsize for tensor in attached.training_state().values())
    sizes = {"": np.array((0, 0, kept))}
    for kind, site in attached.sites.items():
        for tensor in site.trainable:
            n_bytes = tensor.numel() * tensor.itemsize
            sizes[_name(names, kind, tensor)] = np.array((tensor.numel(), n_bytes, _kept_for(tensor, machine)))
        for frozen in site.frozen:
            sizes[_name(names, kind, frozen)] = np.array((0, frozen.numel() * frozen.itemsize, 0))
    return sizes


def _kept_for(tensor: torch.Tensor, machine: Machine) -> int:
    """Return what an optimizer keeps for one tensor more, whatever all tensors share."""
    both, one = ((tensor.numel(), _LARGE), (_LARGE,))
    return state_bytes(machine.optimizer, both) - state_bytes(machine.optimizer, one)


def _name(names: Mapping[int, str], kind: str, tensor: torch.Tensor) -> str:
    return names.get(id(tensor), f"{_UNNAMED}{kind}/{id(tensor)}")


def _sum(sizes: Iterable[Sizes]) -> Sizes:
    return sum(sizes, start=np.zeros(3, dtype=np.int64))


def without_layers(block: Block) -> Hashable:
    """Return what two blocks that differ in their layers alone have in common."""
    return type(block), *(value for name, value in vars(block).items() if name != "layers")
