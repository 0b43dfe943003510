"""How many designs a search space holds, and which of them are the smallest."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from autopeft.errors import DesignError
from autopeft.spec.block import Block, make_block
from autopeft.spec.block_space import BlockSpace
from autopeft.spec.choices import Choice, Groups, OwnLayers, Range, SameAs


def layer_owner(entry: BlockSpace, entries: Sequence[BlockSpace]) -> BlockSpace:
    """Return the entry that chooses the layers of this one: itself, or the one that it shares them with."""
    while isinstance(entry.layers, SameAs):
        shared = entry.layers.block
        entry = next(other for other in entries if other.name == shared)
    return entry


def count_assignments(entries: Sequence[BlockSpace], any_of: Sequence[str], n_layers: int) -> float:
    """Count the assignments of the entries' discrete choices, without those in which no block of `any_of` is there.

    Entries that share no layers are independent of each other, so that the counts of such families multiply.
    """
    families = [_Family(rule=rule, entries=own, n_layers=n_layers) for rule, own in _families(entries)]
    total = math.prod(family.n_all() for family in families)
    if math.isinf(total) or not any_of:
        return total
    return total - math.prod(family.n_without(any_of) for family in families)


def smallest_blocks(entries: Sequence[BlockSpace], any_of: Sequence[str], n_layers: int) -> Iterator[tuple[Block, ...]]:
    """Yield the blocks of every design that could be the cheapest, one of `any_of` among them.

    A further block never makes a design cheaper: what cannot be left out is there, and at most one other.
    """
    tied = [entry for entry in entries if not _droppable(entry, n_layers)]
    always = [entry for entry in tied if not layer_owner(entry, entries).layers.may_be_empty(n_layers)]
    patterns = [always]
    for entry in (entry for entry in entries if _n_use(entry)[1]):
        owner = layer_owner(entry, entries)
        together = [e for e in entries if e is entry or e in always or (e in tied and layer_owner(e, entries) is owner)]
        if together not in patterns:
            patterns.append(together)
    for pattern in patterns:
        if any_of and not {entry.name for entry in pattern} & set(any_of):
            continue
        yield from itertools.product(*(_smallest_of(e, layer_owner(e, entries).layers, n_layers) for e in pattern))


def _families(entries: Sequence[BlockSpace]) -> Iterator[tuple[OwnLayers, list[BlockSpace]]]:
    """Yield entries that have their layers in common, with the rule that chooses these."""
    by_owner: dict[str, list[BlockSpace]] = {}
    for entry in entries:
        by_owner.setdefault(layer_owner(entry, entries).name, []).append(entry)
    for owner, own in by_owner.items():
        rule = next(entry.layers for entry in entries if entry.name == owner)
        assert not isinstance(rule, SameAs), "an owner chooses its own layers"
        yield rule, own


@dataclass(frozen=True, kw_only=True)
class _Family:
    rule: OwnLayers
    entries: Sequence[BlockSpace]
    n_layers: int

    def n_all(self) -> float:
        """Count every assignment; the layers are a choice only where one of the entries is used."""
        unused = math.prod(_n_use(entry)[0] for entry in self.entries)
        either = math.prod(_n_use(entry)[0] + self._n_used(entry) for entry in self.entries)
        return unused + (either - unused) * self.rule.count(self.n_layers)

    def n_without(self, names: Sequence[str]) -> float:
        """Count the assignments in which no block of these names is there: unused, of size 0 or in no layer."""
        unused = math.prod(_n_use(entry)[0] for entry in self.entries)
        either = math.prod(_n_use(entry)[0] + self._n_used(entry) for entry in self.entries)
        absent = math.prod(
            _n_use(entry)[0] + (self._n_absent(entry) if entry.name in names else self._n_used(entry))
            for entry in self.entries
        )
        n_empty = int(self.rule.may_be_empty(self.n_layers))
        return unused + (either - unused) * n_empty + (absent - unused) * (self.rule.count(self.n_layers) - n_empty)

    def _n_used(self, entry: BlockSpace) -> float:
        return self._n_with(entry, _n_sizes(entry, self.n_layers)[0])

    def _n_absent(self, entry: BlockSpace) -> float:
        return self._n_with(entry, _n_sizes(entry, self.n_layers)[1])

    def _n_with(self, entry: BlockSpace, n_sizes: float) -> float:
        """Count the assignments of an entry that is used, with so many sizes to choose from."""
        n_uses = _n_use(entry)[1]
        fields = [param for name, param in entry.fields.items() if name != entry.block.size_field]
        n_groups = len(entry.layers.split(self.n_layers)) if isinstance(entry.layers, Groups) else 1
        return n_uses and n_uses * n_sizes**n_groups * math.prod(param.count(self.n_layers) for param in fields)


def _n_use(entry: BlockSpace) -> tuple[int, int]:
    """Return how many options leave the entry out, and how many use it; a switch of each group is no such option."""
    if entry.chosen_by_group == "use":
        return 0, 1
    options = entry.use.options if isinstance(entry.use, Choice) else (True,)
    return sum(not option for option in options), sum(bool(option) for option in options)


def _n_sizes(entry: BlockSpace, n_layers: int) -> tuple[float, float]:
    """Return how many sizes a place can have, and how many of them leave the block out there."""
    param = entry.use if entry.chosen_by_group == "use" else entry.size
    if param is None:
        return 1, 0
    return param.count(n_layers), _n_zeros(param, n_layers)


def _n_zeros(param: Choice | Range, n_layers: int) -> int:
    if isinstance(param, Choice):
        return sum(not option for option in param.options)
    low, high = param.bounds(n_layers)
    return int(low <= 0 <= high)


def _droppable(entry: BlockSpace, n_layers: int) -> bool:
    """Return whether the entry can be left out by its own switch or size."""
    return _n_use(entry)[0] > 0 or _n_sizes(entry, n_layers)[1] > 0


def _smallest_of(entry: BlockSpace, rule: OwnLayers | SameAs, n_layers: int) -> list[Block]:
    """Return a block for each set of places that could be the cheapest: the smallest size in the fewest layers."""
    assert not isinstance(rule, SameAs), "an owner chooses its own layers"
    fields: dict[str, Any] = {name: param.extremes(n_layers)[0] for name, param in entry.fields.items()}
    if entry.size is not None:
        fields[str(entry.block.size_field)] = entry.size.least(n_layers)
    # What is chosen among lists are places, such as roles: which of them are cheapest depends on the model.
    places = {
        name: param.options
        for name, param in entry.fields.items()
        if isinstance(param, Choice) and any(isinstance(option, tuple) for option in param.options)
    }
    layers = rule.fewest(n_layers)
    if isinstance(rule, Groups) and not _n_sizes(entry, n_layers)[1]:
        layers = rule.every(n_layers)
    blocks = []
    for options in itertools.product(*places.values()):
        settings = {**fields, **dict(zip(places, options, strict=True)), "layers": layers}
        try:
            blocks.append(make_block(entry.kind, settings))
        except DesignError:
            continue  # options that exclude each other
    return blocks
