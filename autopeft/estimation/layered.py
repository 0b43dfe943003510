"""The memory of a step as a sum of what blocks add to each stretch of each layer; see `autopeft.estimation.profile`."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from autopeft.errors import DesignError, ModelError
from autopeft.estimation.dry_run import Machine
from autopeft.estimation.parts import without_layers
from autopeft.estimation.profile import Bytes, Profile, ProfilingRun
from autopeft.models.attach import attach
from autopeft.models.base import Base
from autopeft.models.linear_technique import LinearTechnique
from autopeft.models.technique import Technique
from autopeft.spec.block import Block
from autopeft.spec.cost import Workload
from autopeft.spec.design import Design

FORWARD, BACKWARD, EVALUATION = range(3)
Where = slice | list[int]
"""Layers, as an index."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one block adds to a layer that it is in.

    Attributes:
        net: What stretches leave behind, [forward, backward, evaluation] x the stretches of a layer.
        high: How far they go above what the layer itself needs; the same shape.
        keeps: Whether it keeps the input of a map for the backward pass, by group of maps that read the same.
        reads: Whether it keeps the input of a map, by map.
        diverts: Whether it changes the input of a map before the blocks that were attached earlier read it, by map.
        turn: When it is attached, among the blocks of a layer.
        first: The stretch from which on something that it brings needs a gradient.
    """

    net: Bytes
    high: Bytes
    keeps: Bytes
    reads: Bytes
    diverts: Bytes
    turn: tuple[int, str]
    first: int

    @cached_property
    def changes_input(self) -> bool:
        """Return whether it changes any map's input."""
        return bool(self.diverts.any())

    def mix(self, other: "Share", weight: float) -> "Share":
        """Return what lies between two sizes of a block, or beyond them."""
        return replace(
            self,
            net=self.net + weight * (other.net - self.net),
            high=np.maximum(self.high + weight * (other.high - self.high), 0),
        )


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The model itself, at one length of its sequences.

    Attributes:
        net: Like a profile's: with the stretches before and after the layers.
        high: The same shape.
        tokens: Length of the sequences, relative to that without a prompt.
    """

    net: Bytes
    high: Bytes
    tokens: float = 1.0

    def mix(self, other: "Frame", weight: float) -> "Frame":
        """Return what lies between two lengths, or beyond them."""
        return Frame(
            net=self.net + weight * (other.net - self.net),
            high=self.high + weight * (other.high - self.high),
            tokens=self.tokens + weight * (other.tokens - self.tokens),
        )


class LayeredMemory:
    """Peaks of designs over one storage of the base, above what is there all the time."""

    def __init__(self, base: Base, workload: Workload, machine: Machine, n_layers: int) -> None:
        """Learn the model itself.

        Args:
            base: One layer of the model, on the meta device, in the storage that the designs have.
            workload: Shapes of the batches.
            machine: Where the steps run.
            n_layers: Of the model.

        Raises:
            ModelError: A layer does not call each of its linear maps once.
        """
        self._base = base
        self._workload = workload
        self._machine = machine
        self._n_layers = n_layers
        self._live_profile = self._profile(None)
        if len(self._live_profile.order) != 2 * len(base.summary.layers[0].roles) + 2:
            raise ModelError(
                f"the maps of a layer must each run once, but in {base.summary.architecture} they ran as "
                f"{', '.join(self._live_profile.order)}"
            )
        self.start_bytes = self._live_profile.start_bytes
        self._live = self._frame(self._live_profile)
        self._dead = self._frame(self._profile(None, live=False))
        self._begins = {
            name.removesuffix(" begins"): place
            for place, name in enumerate(self._live_profile.order)
            if name.endswith(" begins")
        }
        self._groups = tuple(dict.fromkeys(self._live_profile.sharing.values()))
        self._keeping = np.stack([self._kept_input(group) for group in self._groups])
        self._roles = tuple(self._begins)
        self._diverting = np.stack([self._diverted_input(role) for role in self._roles])
        self._measured: dict[Hashable, dict[int, Any]] = {}
        self._shares: dict[Hashable, tuple[Share, ...]] = {}
        self._frames: dict[Hashable, Frame] = {}
        self._twice: LayeredMemory | None = None

    def peaks(self, blocks: Sequence[Block], keys: Sequence[Hashable]) -> tuple[float, float]:
        """Return how far a training step and an evaluation step go above what is there before them.

        Args:
            blocks: Of a design.
            keys: `without_layers` of each.

        Raises:
            DesignError: A block can't be attached to a model of one layer, or goes with no other one.
        """
        frame, lowest = self._live, self._n_layers
        placed: list[Any] = []
        for block, key in zip(blocks, keys, strict=True):
            if block.whole_model:
                if lowest < 0:
                    raise DesignError("at most one block of the model as a whole can be put together with others")
                frame, lowest = self._prompted(block), -1
                continue
            layers = range(self._n_layers) if block.layers == "all" else block.layers
            where = slice(layers[0], layers[-1] + 1) if layers[-1] - layers[0] + 1 == len(layers) else list(layers)
            lowest = min(lowest, layers[0])
            placed.append((where, layers[0], block, key))
        placed = [(where, bottom, self._at(block, key, frame.tokens)) for where, bottom, block, key in placed]
        first = min((s.first for _, bottom, shares in placed if bottom == lowest for s in shares), default=0)
        net, high = self._rows(frame, lowest, first)
        return self._timeline(frame, *self._add(net, high, placed, frame.tokens), trains_inside=lowest < self._n_layers)

    def _at(self, block: Block, key: Hashable, tokens: float) -> tuple[Share, ...]:
        """Return what a block adds at a length: affine in it, as some of what it keeps is as large as weights are."""
        shares = self._of(block, key)
        if tokens == 1.0:
            return shares
        if self._twice is None:
            longer = replace(self._workload, max_tokens=2 * self._workload.max_tokens)
            n_positions = self._base.summary.n_positions
            if n_positions is not None and longer.max_tokens > n_positions:
                raise DesignError(
                    "what a prompt changes is seen at twice the length, but the model has no such positions"
                )
            self._twice = LayeredMemory(self._base, longer, self._machine, self._n_layers)
        pairs = zip(shares, self._twice._of(block, key), strict=True)
        return tuple(share.mix(twice, tokens - 1.0) for share, twice in pairs)

    def learn(self, block: Block) -> None:
        """Measure what a block adds, whatever its layers."""
        if block.whole_model:
            self._prompted(block)
        else:
            self._of(block, without_layers(block))

    def _rows(self, frame: Frame, lowest: int, first: int) -> tuple[Bytes, Bytes]:
        """Return the model's own layers, [layers, passes, stretches]: dead ones below the lowest that trains."""
        rows = []
        for live, dead in ((frame.net, self._dead.net), (frame.high, self._dead.high)):
            row = np.empty((self._n_layers, *live[:, 1:-1].shape))
            row[max(lowest, 0) :] = live[:, 1:-1]
            row[: max(lowest, 0)] = dead[:, 1:-1]
            if 0 <= lowest < self._n_layers:
                row[lowest, :, :first] = dead[:, 1 : first + 1]
            rows.append(row)
        return rows[0], rows[1]

    def _add(self, net: Bytes, high: Bytes, placed: Sequence[Any], tokens: float) -> tuple[Bytes, Bytes]:
        """Put what blocks add on top of the model's own layers."""
        added, most = np.zeros_like(net), np.zeros_like(net)
        keeps = np.zeros((self._n_layers, len(self._groups)))
        keeping, diverting = tokens * self._keeping, tokens * self._diverting
        in_order = sorted(((share, where) for where, _, shares in placed for share in shares), key=_turn)
        for share, where in in_order:
            so_far = added[where]
            most[where, FORWARD::2] = np.maximum(
                most[where, FORWARD::2], so_far[:, FORWARD::2] + share.high[FORWARD::2]
            )
            added[where] = so_far + share.net
            keeps[where] = np.maximum(keeps[where], share.keeps)
        diverted = self._diverted(in_order, diverting)
        done = np.zeros_like(net[:, BACKWARD])
        # In reverse; what changes a map's input comes last, after all that read what it made.
        backwards = in_order[::-1]
        backwards.sort(key=_changes_input)
        for share, where in backwards:
            before = done[where] + diverted[where, BACKWARD] if _changes_input((share, where)) else done[where]
            most[where, BACKWARD] = np.maximum(most[where, BACKWARD], before + share.high[BACKWARD])
            done[where] += share.net[BACKWARD]
        added += np.tensordot(keeps, keeping, 1) + diverted
        return net + added, high + most

    def _diverted(self, in_order: Sequence[tuple[Share, Where]], change: Bytes) -> Bytes:
        """Return what changes where a block reads what another one has made of a map's input: that is kept too."""
        total = np.zeros((self._n_layers, *change.shape[1:]))
        for diverting, there in in_order:
            if _changes_input((diverting, there)):
                inside, read = np.zeros((2, self._n_layers, len(self._roles)))
                inside[there] = diverting.diverts
                for share, where in in_order:
                    if share.turn < diverting.turn:
                        read[where] = np.maximum(read[where], share.reads)
                total += np.tensordot(inside * read, change, 1)
        return total

    def _timeline(self, frame: Frame, net: Bytes, high: Bytes, *, trains_inside: bool) -> tuple[float, float]:
        """Return the highest points of the training step and of the evaluation step."""
        outer = frame if trains_inside else self._dead
        up = [_line(outer.net[i], net[:, i]) for i in (FORWARD, EVALUATION)]
        tops = [_line(outer.high[i], high[:, i]) for i in (FORWARD, EVALUATION)]
        highest = [_highest(line, top) for line, top in zip(up, tops, strict=True)]
        down = _line(outer.net[BACKWARD], net[:, BACKWARD])[::-1]
        back = up[0].sum() + _highest(down, _line(outer.high[BACKWARD], high[:, BACKWARD])[::-1])
        return max(highest[0], back), highest[1]

    def _of(self, block: Block, key: Hashable) -> tuple[Share, ...]:
        """Return what a block adds, in as many shares as it has independent places."""
        if key not in self._shares:
            self._shares[key] = tuple(self._share(part) for part in _separate(block))
        return self._shares[key]

    def _share(self, block: Block) -> Share:
        everywhere = self._everywhere(block)
        share: Share = self._between(everywhere, self._measure)
        if everywhere is block or not isinstance(block, LinearTechnique) or block.roles == "all":
            return share
        return self._restrict(share, block.roles)

    def _everywhere(self, block: Block) -> Block:
        """Return the block on all maps, where that is legal: what it does on each is seen at once."""
        if isinstance(block, LinearTechnique) and block.roles != "all":
            try:
                (widened := block.model_copy(update={"roles": "all"})).check(self._base.summary, "none")
            except DesignError:
                return block
            return widened
        return block

    def _between(self, block: Block, measure: Callable[[Block], Any]) -> Any:
        """Return a block's share from those of two other sizes: what it adds is affine in the size.

        A size beyond those that were measured is measured.
        """
        known = self._measured.setdefault(variant(block), {})
        size = getattr(block, block.size_field) if block.size_field else 0
        if not known or not min(known) <= size <= max(known):
            known[size] = measure(block)
        if size in known:
            return known[size]
        low, high = max(s for s in known if s < size), min(s for s in known if s > size)
        return known[low].mix(known[high], (size - low) / (high - low))

    def _measure(self, block: Block) -> Share:
        profile = self._profile(block)
        inner = slice(1, -1)
        net = (profile.net - self._live_profile.net)[:, inner]
        high = (profile.high - self._live_profile.high)[:, inner]
        keeps = np.array([float(group in profile.kept) for group in self._groups])
        for number, group in enumerate(self._groups):
            if group in profile.kept and group not in self._live_profile.kept:
                net -= self._keeping[number]
        # What trains tensors of the base shows in the backward pass alone, everything else where it is computed.
        places = (np.flatnonzero(np.abs(net[i]) + np.abs(high[i])) for i in (FORWARD, BACKWARD))
        first = next((int(touched[0]) for touched in places if len(touched)), 0)
        stage = block.stage if isinstance(block, Technique) else 0
        return Share(
            net=net,
            high=np.maximum(high, 0),
            keeps=keeps,
            reads=np.array([float(role in profile.kept) for role in self._roles]),
            diverts=np.array([float(role in profile.diverted) for role in self._roles]),
            turn=(stage, block.kind),
            first=first,
        )

    def _restrict(self, share: Share, roles: Iterable[str]) -> Share:
        """Return the part of a share that belongs to some of the maps."""
        begins = [self._begins[role] for role in roles if role in self._begins]
        mask = np.zeros(share.net.shape[1])
        for place in begins:
            mask[[place - 1, place]] = 1
        chosen = {self._live_profile.sharing[role] for role in roles if role in self._begins}
        keeps = share.keeps * np.array([group in chosen for group in self._groups])
        there = np.array([role in roles for role in self._roles])
        return replace(
            share,
            net=share.net * mask,
            high=share.high * mask,
            keeps=keeps,
            reads=share.reads * there,
            diverts=share.diverts * there,
            first=min(begins, default=0),
        )

    def _kept_input(self, group: str) -> Bytes:
        """Return what changes where a map's input is kept for the backward pass: it goes later."""
        profile = self._live_profile
        n_bytes, n = profile.read[group], profile.net.shape[1] - 2
        change = np.zeros((3, n))
        if group not in profile.kept:
            members = [role for role, first in profile.sharing.items() if first == group]
            change[FORWARD, min(max(profile.released[role] for role in members), n) - 1] = n_bytes
            change[BACKWARD, min(self._begins[role] for role in members)] = -n_bytes
        return change

    def _diverted_input(self, role: str) -> Bytes:
        """Return what changes where what a map multiplies is kept besides its input."""
        change = np.zeros((3, self._live_profile.net.shape[1] - 2))
        n_bytes = self._live_profile.read[role]
        change[[FORWARD, BACKWARD], self._begins[role]] = n_bytes, -n_bytes
        return change

    def _prompted(self, block: Block) -> Frame:
        """Return the model with a prompt before its input."""
        key = without_layers(block)
        if key not in self._frames:
            self._frames[key] = self._between(block, lambda block: self._frame(self._profile(block)))
        return self._frames[key]

    def _frame(self, profile: Profile) -> Frame:
        net = profile.net.copy()
        if not profile.input_stays:
            net[FORWARD, 0] -= profile.input_bytes[0]
            net[EVALUATION, 0] -= profile.input_bytes[1]
        tokens = profile.input_bytes[0] / self._live_profile.input_bytes[0]
        return Frame(net=net, high=profile.high, tokens=tokens)

    def _profile(self, block: Block | None, *, live: bool = True) -> Profile:
        """Run a block on the model of one layer."""
        blocks = () if block is None else (block if block.whole_model else block.model_copy(update={"layers": (0,)}),)
        design = Design(blocks=blocks, quantization=self._base.quantization)
        with torch.device("meta"):
            attached = attach(self._base, design)
        with attached, ProfilingRun(attached, self._machine, live=live) as run:
            return run.profile(self._workload)


def _turn(pair: tuple[Share, Where]) -> tuple[int, str]:
    return pair[0].turn


def _changes_input(pair: tuple[Share, Where]) -> bool:
    return bool(pair[0].changes_input)


def _line(outer: Bytes, layers: Bytes) -> Bytes:
    """Return all stretches of a pass in the order of the forward pass."""
    return np.concatenate((outer[:1], layers.ravel(), outer[-1:]))


def _highest(net: Bytes, high: Bytes) -> float:
    """Return the highest point of stretches that follow each other, above their start."""
    return float((np.cumsum(net) - net + high).max())


def _separate(block: Block) -> Iterator[Block]:
    """Yield a block once for each kind of sublayer that it is in: those don't meet."""
    places = getattr(block, "at", ())
    if isinstance(places, tuple) and len(places) > 1:
        yield from (block.model_copy(update={"at": (place,)}) for place in places)
    else:
        yield block


def variant(block: Block) -> Hashable:
    """Return what decides what a block does to memory besides its size: no layers, and no numbers that scale."""
    fields = vars(block).items()
    left_out = ("layers", block.size_field)
    return type(block), *(value for name, value in fields if name not in left_out and not isinstance(value, float))
