"""Exact sizes of what designs bring, block by block: what trains, its bytes, what the optimizer keeps, the export.

A block is attached once in one layer and once in two layers of a model that has no more: what the second adds is what
each layer gets, the rest comes once. Tensors outside of the layers are known by name, because blocks may share them.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

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


class Sizes(NamedTuple):
    """How large something is.

    Attributes:
        n_params: Parameters that train.
        n_bytes: Of all tensors.
        kept_bytes: Of what the optimizer and the techniques keep for training.
        exported_bytes: Of what an export holds.
    """

    n_params: int = 0
    n_bytes: int = 0
    kept_bytes: int = 0
    exported_bytes: int = 0

    def plus(self, other: "Sizes", times: int = 1) -> "Sizes":
        """Return the sum with so many of another."""
        return Sizes(
            self.n_params + times * other.n_params,
            self.n_bytes + times * other.n_bytes,
            self.kept_bytes + times * other.kept_bytes,
            self.exported_bytes + times * other.exported_bytes,
        )


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
        total = self.head
        shared: dict[str, Sizes] = {}
        for block, key in zip(blocks, keys, strict=True):
            part = self._parts.get(key) or self.part(block, key)
            total = total.plus(part.once)
            if not block.whole_model:
                total = total.plus(part.each, self._n_layers if block.layers == "all" else len(block.layers))
            for name, sizes in part.shared.items():
                shared[name] = Sizes(*map(max, shared.get(name, sizes), sizes))
        for sizes in shared.values():
            total = total.plus(sizes)
        return total

    def knows(self, key: Hashable) -> bool:
        """Return whether the blocks that differ in their layers alone were measured."""
        return key in self._parts

    def part(self, block: Block, key: Hashable) -> Part:
        """Return the sizes of one block, whatever its layers; `key` is its `without_layers`."""
        if key not in self._parts:
            self._parts[key] = self._measure(block)
        return self._parts[key]

    def _measure(self, block: Block) -> Part:
        if block.whole_model:
            found = self._attach((block,))
            return Part(each=Sizes(), once=_sum(found.values()).plus(self.head, -1))
        one, two = (self._attach((block.model_copy(update={"layers": layers}),)) for layers in ((0,), (0, 1)))
        own = {name: sizes for name, sizes in one.items() if name not in self._head_names}
        shared = {name: sizes for name, sizes in own.items() if not name.startswith((self._inside, _UNNAMED))}
        each = _sum(two.values()).plus(_sum(one.values()), -1)
        once = _sum(one.values()).plus(self.head, -1).plus(each, -1).plus(_sum(shared.values()), -1)
        return Part(each=each, once=once, shared=shared)

    def _attach(self, blocks: tuple[Block, ...]) -> dict[str, Sizes]:
        """Return the sizes of every tensor that a design brings, by name; what has none of its own is under ""."""
        with torch.device("meta"):
            attached = attach(self._base, Design(blocks=blocks))
        with attached:
            return _tensors(attached, self._machine)


def _tensors(attached: Attached, machine: Machine) -> dict[str, Sizes]:
    names = {id(t): name for name, t in [*attached.model.named_parameters(), *attached.model.named_buffers()]}
    kept = sum(map(_bytes, attached.training_state().values()))
    sizes = {"": Sizes(kept_bytes=kept)}
    for kind, site in attached.sites.items():
        for parameter in site.trainable:
            kept = _kept_for(parameter, machine)
            sizes[_name(names, kind, parameter)] = Sizes(parameter.numel(), _bytes(parameter), kept)
        for frozen in site.frozen:
            sizes[_name(names, kind, frozen)] = Sizes(n_bytes=_bytes(frozen))
    for name, tensor in attached.exported_tensors().items():
        sizes[name] = sizes.get(name, Sizes()).plus(Sizes(exported_bytes=_bytes(tensor)))
    return sizes


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.itemsize


def _kept_for(tensor: torch.Tensor, machine: Machine) -> int:
    """Return what an optimizer keeps for one tensor more, whatever all tensors share."""
    both, one = ((tensor.numel(), _LARGE), (_LARGE,))
    return state_bytes(machine.optimizer, both) - state_bytes(machine.optimizer, one)


def _name(names: Mapping[int, str], kind: str, tensor: torch.Tensor) -> str:
    return names.get(id(tensor), f"{_UNNAMED}{kind}/{id(tensor)}")


def _sum(sizes: Iterable[Sizes]) -> Sizes:
    total = Sizes()
    for each in sizes:
        total = total.plus(each)
    return total


def without_layers(block: Block) -> Hashable:
    """Return what two blocks that differ in their layers alone have in common."""
    fields = vars(block).copy()
    del fields["layers"]
    return type(block), *fields.values()
