"""What blocks add to a layer, learned from a model of one layer; see `autopeft.costs.profile`."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from autopeft.costs.curve import Bytes, Curve
from autopeft.costs.grid import Grid
from autopeft.costs.intervals import N_MARKS
from autopeft.costs.parts import by_place, on_all_maps, variant
from autopeft.costs.profile import Profile, ProfilingRun
from autopeft.costs.share import BACKWARD, EVALUATION, FORWARD, Frame, Share
from autopeft.costs.simulated_step import Machine
from autopeft.errors import DesignError, ModelError
from autopeft.models.attach import Attached, attach
from autopeft.models.base import Base
from autopeft.models.technique import Technique
from autopeft.spec.block import Block
from autopeft.spec.cost import Workload
from autopeft.spec.design import Design

See = Callable[[Block, Attached], None]
_PRIMES = (61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109, 113, 127, 131, 137, 139, 149)
_INNER_MARKS = (" multiplies", " has multiplied")


class Shares:
    """What a model of one layer, and the blocks that are put into it, show at one length of sequences.

    Attributes:
        live: The model itself, where something below the layer trains.
        dead: The same where nothing does.
        start_bytes: What is there when the training step begins, and when the evaluation step does.
        keeping: What changes where the input of a group of maps is kept, [groups, passes, intervals].
        diverting: What changes where what a map multiplies is kept besides its input, [maps, passes, intervals].
    """

    def __init__(self, base: Base, workload: Workload, machine: Machine, like: "Shares | None", see: See) -> None:
        """Learn the model itself.

        Args:
            base: One layer of the model, on the meta device, in the storage that the designs have.
            workload: Shapes of the batches.
            machine: Where the steps run.
            like: The same over the unquantized base: what the size of a block changes is the same over every storage.
            see: Told of every block that is attached.

        Raises:
            ModelError: A layer does not call each of its linear maps once.
        """
        self._base = base
        self._workload = workload
        self._machine = machine
        self._like = like
        self._see = see
        self._order: tuple[str, ...] | None = None
        self._factor = factor_for(base, workload)
        with self._running(None) as run:
            self._live_profile = run.profile(workload)
            alone = run.layer_profile(run.calls)
        # How the layer is called, where it does by itself what it does in the model; None where it does not.
        self._calls = run.calls if alone.does_the_same(self._live_profile) else None
        self._alone = self._live_profile if self._calls is None else alone
        self._order = self._live_profile.order
        if len(self._order) != N_MARKS * len(base.summary.layers[0].roles) + 2:
            raise ModelError(
                f"the maps of a layer must each run once, but in {base.summary.architecture} they ran as "
                f"{', '.join(self._order)}"
            )
        # Inside of a map what happens is told as one.
        starts = [place for place, name in enumerate(self._order[:-1]) if not name.endswith(_INNER_MARKS)]
        n_inside = len(self._order) - 1
        self._grid = Grid(starts, n_inside)
        self._whole_grid = Grid([0, *(place + 1 for place in starts), n_inside + 1], n_inside + 2)
        self._alone_inside = self._alone.curve.inside(), self._alone.growth.inside()
        self._alone_told = self._grid.told(*self._alone_inside)
        self.start_bytes = self._live_profile.start_bytes
        self.live = self._frame(self._live_profile)
        with self._running(None, live=False) as run:
            self.dead = self._frame(run.profile(workload))
        self._begins = {
            name.removesuffix(" begins"): place for place, name in enumerate(self._order) if name.endswith(" begins")
        }
        self._groups = tuple(dict.fromkeys(self._live_profile.sharing.values()))
        self._keeping = np.stack([self._kept_input(group) for group in self._groups])
        self.keeping = self._grid.sums(self._keeping)
        self._roles = tuple(self._begins)
        self.diverting = self._grid.sums(np.stack([self._diverted_input(role) for role in self._roles]))
        self._measured: dict[Hashable, dict[int, Any]] = {}
        self._scalable: dict[Hashable, Profile | None] = {}
        self._shares: dict[Hashable, tuple[Share, ...]] = {}
        self._frames: dict[Hashable, Frame] = {}

    def of(self, block: Block, key: Hashable) -> tuple[Share, ...]:
        """Return what a block adds, in as many shares as it has independent places; `key` is its `without_layers`."""
        if key not in self._shares:
            self._shares[key] = tuple(self._share(part) for part in by_place(block))
        return self._shares[key]

    def prompted(self, block: Block, key: Hashable) -> Frame:
        """Return the model with a prompt before its input; `key` is its `without_layers`."""
        if key not in self._frames:
            self._frames[key] = self._prompted(block)
        return self._frames[key]

    def _prompted(self, block: Block) -> Frame:
        """Return the model with a prompt; what that changes is the same however weights are stored, as is its share."""
        if self._like is None:
            frame: Frame = self._between(block, Shares._measure_frame)
            return frame
        return self._like._prompted(block).moved(self._like.live, self.live)

    def _share(self, block: Block) -> Share:
        widened = on_all_maps(block, self._base.summary)
        share = self._own(widened or block)
        if widened is not None:
            share = self._restrict(share, block.roles)  # type: ignore[attr-defined]
        curve, growth = self._grid.added(share.curve, share.growth, self._alone_inside, self._alone_told)
        return replace(share, curve=curve, growth=growth)

    def _own(self, block: Block) -> Share:
        """Return what a block adds: where it does not read the maps' weights, their storage makes no difference."""
        if self._like is not None:
            share = self._like._own(block)
            if not share.reads_weights:
                return share
        found: Share = self._of_factor(block) or self._between(block, Shares._measure)
        return found

    def _of_factor(self, block: Block) -> Share | None:
        """Return a block's share from a run at a size that divides nothing else; None where its size is no factor."""
        field = block.size_field
        if not block.size_is_factor or field is None or self._factor is None:
            return None
        kind = variant(block)
        if kind not in self._scalable:
            marked = block.model_copy(update={field: self._factor})
            try:
                self._scalable[kind] = self._profile(marked, factor=self._factor)
            except DesignError:  # more than the model's maps allow
                self._scalable[kind] = None
        profile = self._scalable[kind]
        if profile is None:
            return None
        return self._share_of(block, profile.scaled(getattr(block, field) / self._factor))

    def _between(self, block: Block, measure: Callable[["Shares", Block], Any]) -> Any:
        """Return a block's share, or frame, from those of two other sizes: what it adds is affine in the size.

        A size beyond those that were measured is measured.
        """
        known = self._measured.setdefault(variant(block), {})
        field = block.size_field
        size = getattr(block, field) if field else 0
        if size in known:
            return known[size]
        if known and field and self._like is not None:
            ((other, found),) = known.items()
            start = block.model_copy(update={field: other})
            return found.moved(self._like._between(start, measure), self._like._between(block, measure))
        if not known or not min(known) <= size <= max(known):
            known[size] = measure(self, block)
            return known[size]
        low, high = max(s for s in known if s < size), min(s for s in known if s > size)
        return known[low].mix(known[high], (size - low) / (high - low))

    def _measure(self, block: Block) -> Share:
        return self._share_of(block, self._profile(block))

    def _profile(self, block: Block, *, factor: int | None = None) -> Profile:
        with self._running(block, factor=factor) as run:
            return run.profile(self._workload) if self._calls is None else run.layer_profile(self._calls)

    def _share_of(self, block: Block, profile: Profile) -> Share:
        live = self._alone
        curve, growth = (
            one.plus(other, -1).inside() for one, other in ((profile.curve, live.curve), (profile.growth, live.growth))
        )
        net, high = curve.net, curve.high
        keeps = np.array([float(group in profile.kept) for group in self._groups])
        for number, group in enumerate(self._groups):
            if group in profile.kept and group not in live.kept:
                net -= self._keeping[number]
                growth.net -= self._keeping[number]
        # What trains tensors of the base shows in the backward pass alone, everything else where it is computed.
        places = (np.flatnonzero(np.abs(net[i]) + np.abs(high[i])) for i in (FORWARD, BACKWARD))
        first = self._grid.group(next((int(touched[0]) for touched in places if len(touched)), 0))
        diverts = np.array([float(role in profile.diverted) for role in self._roles])
        growth.high[high <= 0] = 0
        return Share(
            curve=Curve(net=net, high=np.maximum(high, 0), flops=curve.flops),
            growth=growth,
            keeps=keeps,
            reads=np.array([float(role in profile.kept) for role in self._roles]),
            diverts=diverts,
            turn=(block.stage if isinstance(block, Technique) else 0, block.kind),
            first=first,
            computes=self._computed_from(first, changes_input=bool(diverts.any())),
            reads_weights=profile.reads_weights,
        )

    def _computed_from(self, first: int, *, changes_input: bool) -> Bytes:
        """Return of which intervals autograd computes the layer's own part where nothing before `first` trains.

        What changes a map's output asks nothing of the map itself, nor of those that read the same input.
        """
        begins = {role: self._grid.group(place) for role, place in self._begins.items()}
        computed = np.zeros(self._grid.group(-1) + 1)
        computed[first:] = 1
        if not changes_input:
            sharing = self._live_profile.sharing
            here = next((role for role, place in begins.items() if first == place), None)
            same = [role for role, group in sharing.items() if here is not None and group == sharing[here]]
            computed[[begins[role] for role in same]] = 0
        return computed

    def _restrict(self, share: Share, roles: Iterable[str]) -> Share:
        """Return the part of a share that belongs to some of the maps."""
        begins = [self._begins[role] for role in roles if role in self._begins]
        mask = np.zeros(share.curve.net.shape[1])
        for place in begins:
            mask[place - 1 : place + N_MARKS - 1] = 1
        chosen = {self._live_profile.sharing[role] for role in roles if role in self._begins}
        there = np.array([role in roles for role in self._roles])
        first, diverts = self._grid.group(min(begins, default=0)), share.diverts * there
        return replace(
            share,
            curve=share.curve.masked(mask),
            growth=share.growth.masked(mask),
            keeps=share.keeps * np.array([group in chosen for group in self._groups]),
            reads=share.reads * there,
            diverts=diverts,
            first=first,
            computes=self._computed_from(first, changes_input=bool(diverts.any())),
        )

    def _kept_input(self, group: str) -> Bytes:
        """Return what changes where a map's input is kept for the backward pass: it goes later."""
        profile = self._live_profile
        n_bytes, n = profile.read[group], profile.curve.net.shape[1] - 2
        change = np.zeros((3, n))
        if group not in profile.kept:
            members = [role for role, first in profile.sharing.items() if first == group]
            change[FORWARD, min(max(profile.released[role] for role in members), n) - 1] = n_bytes
            change[BACKWARD, min(self._begins[role] for role in members)] = -n_bytes
        return change

    def _diverted_input(self, role: str) -> Bytes:
        """Return what changes where what a map multiplies is kept besides its input."""
        change = np.zeros((3, self._live_profile.curve.net.shape[1] - 2))
        n_bytes = self._live_profile.read[role]
        change[[FORWARD, BACKWARD], self._begins[role]] = n_bytes, -n_bytes
        return change

    def _measure_frame(self, block: Block) -> Frame:
        with self._running(block) as run:
            return self._frame(run.profile(self._workload))

    def _frame(self, profile: Profile) -> Frame:
        net = profile.curve.net.copy()
        if not profile.input_stays:
            net[FORWARD, 0] -= profile.input_bytes[0]
            net[EVALUATION, 0] -= profile.input_bytes[1]
        tokens = profile.input_bytes[0] / self._live_profile.input_bytes[0]
        curve, growth = self._whole_grid.told(replace(profile.curve, net=net), profile.growth)
        return Frame(curve=curve, growth=growth, tokens=tokens)

    @contextmanager
    def _running(self, block: Block | None, *, live: bool = True, factor: int | None = None) -> Iterator[ProfilingRun]:
        """Attach a block to the model of one layer, ready for steps."""
        blocks = () if block is None else (block if block.whole_model else block.model_copy(update={"layers": (0,)}),)
        design = Design(blocks=blocks, quantization=self._base.quantization)
        with torch.device("meta"):
            attached = attach(self._base, design)
        for each in blocks:
            self._see(each, attached)
        with attached, ProfilingRun(attached, self._machine, live=live, order=self._order, factor=factor) as run:
            yield run


def factor_for(base: Base, workload: Workload) -> int | None:
    """Return a prime number that divides no dimension of a model's tensors and of its batches; None where all do."""
    batches = (workload.batch_size, workload.evaluation_batch_size, workload.max_tokens)
    sizes = {*batches, *(size for tensor in base.model.parameters() for size in tensor.shape)}
    return next((number for number in _PRIMES if all(size % number for size in sizes)), None)
