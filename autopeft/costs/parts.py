"""Exact sizes of what designs bring, block by block: what trains, its bytes, what the optimizer keeps, the export.

A block is attached once in one layer and once in two layers of a model that has no more: what the second adds is what
each layer gets, the rest comes once. Where that is all that is named after the layer, other sizes of the block are
attached to one layer alone. Tensors outside of the layers are known by name, because blocks may share them. A technique
on some of the maps brings what it brings to these when it is on all of them, one in several places the sum of what it
brings to each; and where three sizes of a block lie on a line, so do those between them.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

import torch

from autopeft.costs.optimizers import state_bytes
from autopeft.costs.shortened import layers_path, shorten
from autopeft.costs.simulated_step import Machine
from autopeft.errors import DesignError
from autopeft.models.attach import Attached, attach
from autopeft.models.base import Base
from autopeft.models.linear_technique import LinearTechnique
from autopeft.spec.block import Block
from autopeft.spec.design import Design
from autopeft.spec.model import ModelSummary

_UNNAMED = "/"
"""What the names of tensors begin with that are no part of the model."""
_LARGE = 2**20
_N_ON_A_LINE = 3


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

    def between(self, other: "Sizes", share: Fraction) -> "Sizes | None":
        """Return what lies on the line to another; None where that is not in whole numbers."""
        found = [one + share * (two - one) for one, two in zip(self, other, strict=True)]
        return Sizes(*map(int, found)) if all(each.denominator == 1 for each in found) else None


NOTHING = Sizes()


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one block brings.

    Attributes:
        each: To every layer that it is in.
        once: However many layers it is in.
        shared: Outside of the layers, by name: once for all blocks that bring it.
        maps: To each linear map of a layer, by role, where that is all that it brings; empty where it is not.
    """

    each: Sizes
    once: Sizes = NOTHING
    shared: Mapping[str, Sizes] = field(default_factory=dict)
    maps: Mapping[str, Sizes] = field(default_factory=dict)

    def between(self, other: "Part", share: Fraction) -> "Part | None":
        """Return what lies on the line to another; None where that is not in whole numbers, or they differ in kind."""
        each, once = self.each.between(other.each, share), self.once.between(other.once, share)
        shared, maps = _between(self.shared, other.shared, share), _between(self.maps, other.maps, share)
        if each is None or once is None or shared is None or maps is None:
            return None
        return Part(each=each, once=once, shared=shared, maps=maps)


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
        self._sizes: dict[Hashable, dict[int, Part]] = {}
        self._seen: dict[Hashable, dict[str, Sizes]] = {}
        self._plain: set[Hashable] = set()
        self._beside: dict[Hashable, Block] = {}
        head = self._attach(())
        self.head = _sum(head.values())
        self._head_names = head.keys()
        self._rest = head[""]

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

    def see(self, block: Block, attached: Attached) -> None:
        """Take the sizes of a block that was attached to one layer for another reason."""
        key = without_layers(block)
        if key not in self._parts:
            self._seen[key] = _tensors(attached, self._machine)
            if block.size_is_factor:
                self._beside[variant(block)] = block

    def knows(self, key: Hashable) -> bool:
        """Return whether the blocks that differ in their layers alone were measured."""
        return key in self._parts

    def part(self, block: Block, key: Hashable) -> Part:
        """Return the sizes of one block, whatever its layers; `key` is its `without_layers`."""
        if key not in self._parts:
            self._parts[key] = self._between(block) or self._measured(block)
        return self._parts[key]

    def _between(self, block: Block) -> Part | None:
        """Return what lies between two measured sizes of a block, where a third one lies between them too.

        Where the size is a factor, two say it of all.
        """
        beside = self._beside.pop(variant(block), None)
        if beside is not None:
            self.part(beside, without_layers(beside))
        known = self._sizes.get(variant(block), {})
        size = getattr(block, block.size_field) if block.size_field else 0
        if len(known) < (2 if block.size_is_factor else _N_ON_A_LINE):
            return None
        if not block.size_is_factor and not min(known) < size < max(known):
            return None
        low, high = min(known), max(known)

        def on_line(place: int) -> Part | None:
            return known[low].between(known[high], Fraction(place - low, high - low))

        return on_line(size) if all(on_line(other) == part for other, part in known.items()) else None

    def _measured(self, block: Block) -> Part:
        part = self._measure(block)
        if block.size_field:
            self._sizes.setdefault(variant(block), {})[getattr(block, block.size_field)] = part
        return part

    def _measure(self, block: Block) -> Part:
        if block.whole_model:
            found = self._in_one(block)
            return Part(each=Sizes(), once=_sum(found.values()).plus(self.head, -1))
        return self._of_roles(block) or self._of_places(block) or self._in_layers(block)

    def _of_roles(self, block: Block) -> Part | None:
        """Return what a technique on some of the maps brings, where it brings nothing but to single maps."""
        widened = on_all_maps(block, self._base.summary)
        if widened is None:
            return None
        maps = self.part(widened, without_layers(widened)).maps
        if not maps:
            return None
        chosen = {role: sizes for role, sizes in maps.items() if role in block.roles}  # type: ignore[attr-defined]
        return Part(each=_sum(chosen.values()), maps=chosen)

    def _of_places(self, block: Block) -> Part | None:
        """Return what a block in several kinds of sublayers brings, where nothing comes once for all of them."""
        single = list(by_place(block))
        parts = [self.part(one, without_layers(one)) for one in single] if len(single) > 1 else []
        if not parts or any(part.once != NOTHING for part in parts):
            return None
        shared = {name: sizes for part in parts for name, sizes in part.shared.items()}
        return Part(each=_sum(part.each for part in parts), shared=shared)

    def _in_layers(self, block: Block) -> Part:
        """Attach a block to one layer, and to two where it may bring something else to a layer than is named so."""
        one = self._in_one(block.model_copy(update={"layers": (0,)}))
        own = {name: sizes for name, sizes in one.items() if name not in self._head_names}
        if isinstance(block, LinearTechnique) and one[""] == self._rest and (maps := self._maps(own)):
            return Part(each=_sum(maps.values()), maps=maps)
        shared = {name: sizes for name, sizes in own.items() if not name.startswith((self._inside, _UNNAMED))}
        named = _sum(sizes for name, sizes in own.items() if name.startswith(self._inside))
        kind = variant(block), one[""], frozenset(own)
        if kind in self._plain:
            return Part(each=named, shared=shared)
        two = self._attach((block.model_copy(update={"layers": (0, 1)}),))
        each = _sum(two.values()).plus(_sum(one.values()), -1)
        once = _sum(one.values()).plus(self.head, -1).plus(each, -1).plus(_sum(shared.values()), -1)
        if each == named and once == NOTHING:
            self._plain.add(kind)
        return Part(each=each, once=once, shared=shared)

    def _in_one(self, block: Block) -> dict[str, Sizes]:
        """Return the sizes of what a block in one layer, or in the model as a whole, brings."""
        seen = self._seen.pop(without_layers(block), None)
        return self._attach((block,)) if seen is None else seen

    def _maps(self, sizes: Mapping[str, Sizes]) -> Mapping[str, Sizes]:
        """Return what belongs to each linear map of the first layer; nothing where something belongs to none."""
        found: dict[str, Sizes] = {}
        paths = {f"{linear.path}.": role for role, linear in self._base.summary.layers[0].roles.items()}
        for name, size in sizes.items():
            role = next((role for path, role in paths.items() if name.startswith(path)), None)
            if role is None:
                return {}
            found[role] = found.get(role, Sizes()).plus(size)
        return found

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


def on_all_maps(block: Block, model: ModelSummary) -> LinearTechnique | None:
    """Return a technique on some maps as it is on all of the first layer's; None for other blocks, or where illegal."""
    if not isinstance(block, LinearTechnique) or block.roles == "all":
        return None
    widened = block.model_copy(update={"roles": "all", "layers": (0,)})
    try:
        widened.check(model, "none")
    except DesignError:
        return None
    return widened


def _between(one: Mapping[str, Sizes], two: Mapping[str, Sizes], share: Fraction) -> Mapping[str, Sizes] | None:
    """Return what lies between sizes of the same names; None where they are not, or not in whole numbers."""
    if one.keys() != two.keys():
        return None
    found = {name: sizes.between(two[name], share) for name, sizes in one.items()}
    known = {name: sizes for name, sizes in found.items() if sizes is not None}
    return known if len(known) == len(found) else None


def by_place(block: Block) -> Iterator[Block]:
    """Yield a block once for each kind of sublayer that it is in: those don't meet."""
    places = getattr(block, "at", ())
    if isinstance(places, tuple) and len(places) > 1:
        yield from (block.model_copy(update={"at": (place,)}) for place in places)
    else:
        yield block


def without_layers(block: Block) -> Hashable:
    """Return what decides what a block brings to a layer: no layers, and no numbers that scale."""
    fields = vars(block).items()
    return type(block), *(value for name, value in fields if name != "layers" and type(value) is not float)


def variant(block: Block) -> Hashable:
    """Return what two blocks have in common that differ in their size too."""
    fields = vars(block).items()
    left_out = ("layers", block.size_field)
    return type(block), *(value for name, value in fields if name not in left_out and type(value) is not float)
