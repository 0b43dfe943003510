"""A step of a design over many layers, put together from what its blocks add to one; see `shares` for what they add."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from autopeft.costs.curve import Bytes
from autopeft.costs.share import BACKWARD, EVALUATION, FORWARD, Frame, Share, ShareTable
from autopeft.costs.shares import See, Shares
from autopeft.costs.simulated_step import Machine
from autopeft.errors import DesignError
from autopeft.models.base import Base
from autopeft.spec.block import Block
from autopeft.spec.cost import Workload


@dataclass(frozen=True, kw_only=True)
class Steps:
    """What a training step and an evaluation step come to.

    Attributes:
        training_bytes: How far the training step goes above what is there before it.
        evaluation_bytes: The same of the evaluation step.
        training_flops: Operations of the training step: all of them, and those of attention.
        evaluation_flops: All operations of the evaluation step.
    """

    training_bytes: float
    evaluation_bytes: float
    training_flops: tuple[float, float]
    evaluation_flops: float


@dataclass(frozen=True, kw_only=True)
class _Blocks:
    """The blocks of a design that are in layers, in the order in which they are attached.

    Attributes:
        numbers: Of their shares.
        on: Whether a share is in a layer, [shares, layers].
        lowest: The lowest layer that one is in; as many as there are where none is, and -1 where something below all
            layers trains.
        at_bottom: Which of the shares are in that layer.
        frame: The model itself, at the length that the design gives its inputs.
    """

    numbers: list[int]
    on: Bytes
    lowest: int
    at_bottom: list[int]
    frame: Frame


class LayeredMemory:
    """Steps of designs over one storage of the base.

    Arrays of a layer's intervals have the axes [passes, layers, intervals].
    """

    def __init__(
        self,
        base: Base,
        workload: Workload,
        machine: Machine,
        n_layers: int,
        like: "LayeredMemory | None" = None,
        see: See = lambda *_: None,
    ) -> None:
        """Learn the model itself.

        Args:
            base: One layer of the model, on the meta device, in the storage that the designs have.
            workload: Shapes of the batches.
            machine: Where the steps run.
            n_layers: Of the model.
            like: The same over the unquantized base, where this one is quantized: what size and length change is
                learned there.
            see: Told of every block that is attached.

        Raises:
            ModelError: A layer does not call each of its linear maps once.
        """
        self._n_layers = n_layers
        self._like = like
        self._shares: Shares = Shares(base, workload, machine, None if like is None else like._shares, see)
        self.start_bytes = self._shares.start_bytes
        self._known: list[Share] = []
        self._turns: list[tuple[int, str]] = []
        self._changes_input: list[bool] = []
        self._numbers: dict[Hashable, tuple[int, ...]] = {}
        self._table: ShareTable | None = None
        self._layers: dict[object, tuple[Bytes, int]] = {}
        self._rows: dict[tuple[int, int], tuple[Bytes, Bytes]] = {}

    def knows(self, block: Block, key: Hashable) -> bool:
        """Return whether a block was learned, whatever its layers."""
        return key in self._numbers or block.whole_model

    def learn(self, block: Block, key: Hashable) -> None:
        """Measure what a block adds, whatever its layers; `key` is its `without_layers`.

        Raises:
            DesignError: It can't be attached to a model of one layer.
        """
        if block.whole_model:
            self._shares.prompted(block, key)
        elif key not in self._numbers:
            found = self._shares.of(block, key)
            self._numbers[key] = tuple(range(len(self._known), len(self._known) + len(found)))
            self._known += found
            self._turns += [share.turn for share in found]
            self._changes_input += [bool(share.diverts.any()) for share in found]

    def steps(self, blocks: Sequence[Block], keys: Sequence[Hashable]) -> Steps:
        """Return what the steps of a design come to.

        Args:
            blocks: Of a design.
            keys: `without_layers` of each.

        Raises:
            DesignError: A block can't be attached to a model of one layer, or goes with no other one.
        """
        placed = self._place(blocks, keys)
        net, high = self._rows_of(placed)
        own_flops = np.zeros((2, 3))
        if placed.numbers:
            added, most, own_flops = self._add(placed)
            net, high = net + added, high + most
        training_bytes, evaluation_bytes = self._peaks(placed, net, high)
        flops = self._flops(placed, own_flops)
        return Steps(
            training_bytes=training_bytes,
            evaluation_bytes=evaluation_bytes,
            training_flops=(flops[0, FORWARD] + flops[0, BACKWARD], flops[1, FORWARD] + flops[1, BACKWARD]),
            evaluation_flops=flops[0, EVALUATION],
        )

    def _place(self, blocks: Sequence[Block], keys: Sequence[Hashable]) -> _Blocks:
        """Put the blocks of a design into layers."""
        frame, prompted, lowest = self._shares.live, False, self._n_layers
        found: list[tuple[tuple[int, str], int, Bytes, int]] = []
        for block, key in zip(blocks, keys, strict=True):
            if block.whole_model:
                if prompted:
                    raise DesignError("at most one block of the model as a whole can be put together with others")
                frame, prompted = self._shares.prompted(block, key), True
                continue
            numbers = self._numbers.get(key)
            if numbers is None:
                self.learn(block, key)
                numbers = self._numbers[key]
            on, bottom = self._on(block)
            lowest = min(lowest, bottom)
            found += [(self._turns[number], number, on, bottom) for number in numbers]
        found.sort(key=_turn)
        return _Blocks(
            numbers=[number for _, number, _, _ in found],
            on=np.array([on for _, _, on, _ in found]),
            lowest=-1 if prompted else lowest,
            at_bottom=[number for _, number, _, bottom in found if bottom == lowest],
            frame=frame,
        )

    def _on(self, block: Block) -> tuple[Bytes, int]:
        """Return which layers a block is in, and the lowest of them."""
        if block.layers not in self._layers:
            on = np.zeros(self._n_layers)
            on[range(self._n_layers) if block.layers == "all" else list(block.layers)] = 1
            self._layers[block.layers] = on, int(on.argmax())
        return self._layers[block.layers]

    def _rows_of(self, placed: _Blocks) -> tuple[Bytes, Bytes]:
        """Return the model's own layers: dead ones below the lowest that trains."""
        if placed.lowest < 0:
            curve = placed.frame.curve
            return curve.net[:, None, 1:-1], curve.high[:, None, 1:-1]
        first = min((self._known[number].first for number in placed.at_bottom), default=0)
        if (placed.lowest, first) not in self._rows:
            live, dead, rows = self._shares.live.curve, self._shares.dead.curve, []
            for above, below in ((live.net, dead.net), (live.high, dead.high)):
                row = np.repeat(above[:, None, 1:-1], self._n_layers, axis=1)
                row[:, : placed.lowest] = below[:, None, 1:-1]
                row[:, placed.lowest : placed.lowest + 1, :first] = below[:, None, 1 : first + 1]
                rows.append(row)
            self._rows[placed.lowest, first] = rows[0], rows[1]
        return self._rows[placed.lowest, first]

    def _add(self, placed: _Blocks) -> tuple[Bytes, Bytes, Bytes]:
        """Return what blocks leave behind, how far they go above the model's own layers, and what they compute.

        Layers in which the same blocks are get the same, which is put together once.
        """
        numbers, tokens = placed.numbers, placed.frame.tokens
        on, kind_of = _kinds(placed.on)
        table = self._known_table()
        net, high, flops = (part[numbers] for part in (table.curve.net, table.curve.high, table.curve.flops))
        if tokens != 1.0:
            net += (tokens - 1.0) * table.growth.net[numbers]
            high = high + (tokens - 1.0) * table.growth.high[numbers]
            flops += (tokens - 1.0) * table.growth.flops[numbers]
        there = on[:, None, :, None]
        each = there * net[:, :, None]
        before = each.cumsum(axis=0)
        added = before[-1].copy()
        before -= each
        changers = [place for place, number in enumerate(numbers) if self._changes_input[number]]
        # In reverse; what changes a map's input comes last, after all that read what it made.
        if changers:
            diverted = tokens * self._diverted(placed, on, changers)
            before[:, BACKWARD] = _behind(each[:, BACKWARD], changers)
            before[changers, BACKWARD] += diverted[BACKWARD]
        else:
            diverted = None
            before[:, BACKWARD] = added[BACKWARD] - before[:, BACKWARD] - each[:, BACKWARD]
        before += high[:, :, None]
        before *= there
        most = np.maximum(before.max(axis=0), 0)
        keeps = np.minimum(on.T @ table.keeps[numbers], 1.0)
        added += tokens * (keeps @ self._shares.keeping.swapaxes(0, 1))
        if diverted is not None:
            added += diverted
        own_flops = (placed.on.sum(axis=1) @ flops.reshape(len(numbers), -1)).reshape(2, 3)
        return added[:, kind_of], most[:, kind_of], own_flops

    def _diverted(self, placed: _Blocks, on: Bytes, changers: Sequence[int]) -> Bytes:
        """Return what changes where a block reads what another one has made of a map's input: that is kept too."""
        reads = self._known_table().reads
        met = np.zeros((on.shape[1], len(self._shares.diverting)))
        for place in changers:
            number = placed.numbers[place]
            n_earlier = sum(self._turns[other] < self._turns[number] for other in placed.numbers[:place])
            if n_earlier:
                read = np.minimum(on[:n_earlier].T @ reads[placed.numbers[:n_earlier]], 1.0)
                met += on[place][:, None] * self._known[number].diverts * read
        changed: Bytes = met @ self._shares.diverting.swapaxes(0, 1)
        return changed

    def _peaks(self, placed: _Blocks, net: Bytes, high: Bytes) -> tuple[float, float]:
        """Return the highest points of the training step and of the evaluation step."""
        outer = self._outer(placed).curve
        left, top = (self._line(ends, rows) for ends, rows in ((outer.net, net), (outer.high, high)))
        sums = left.cumsum(axis=1)
        above = top - left
        above += sums
        ups = above[FORWARD].max(), above[EVALUATION].max()
        down = sums[BACKWARD, -1] - sums[BACKWARD] + top[BACKWARD]  # in reverse
        return float(max(ups[0], sums[FORWARD, -1] + down.max())), float(ups[1])

    def _line(self, ends: Bytes, rows: Bytes) -> Bytes:
        """Return all intervals of each pass, in the order of the forward pass."""
        n_inside = rows.shape[-1]
        line = np.empty((3, self._n_layers * n_inside + 2))
        line[:, 0], line[:, -1] = ends[:, 0], ends[:, -1]
        line[:, 1:-1].reshape(3, self._n_layers, n_inside)[:] = rows
        return line

    def _flops(self, placed: _Blocks, own: Bytes) -> Bytes:
        """Return all operations, and those of attention, by pass."""
        live, n_live = placed.frame.curve.flops, self._n_layers - max(placed.lowest, 0)
        total: Bytes = own + self._outer(placed).outer_flops + n_live * placed.frame.layer_flops
        if placed.lowest > 0:
            total += (self._n_layers - n_live) * self._shares.dead.layer_flops
        if placed.at_bottom and placed.lowest >= 0:
            computed = self._known_table().computes[placed.at_bottom].max(axis=0)
            total[:, BACKWARD] -= live[:, BACKWARD, 1:-1] @ (1 - computed)
        return total

    def _outer(self, placed: _Blocks) -> Frame:
        """Return the model whose intervals before and after the layers are those of a design."""
        return placed.frame if placed.lowest < self._n_layers else self._shares.dead

    def _known_table(self) -> ShareTable:
        if self._table is None:
            self._table = ShareTable.of(self._known)
        elif n_new := len(self._known) - len(self._table.keeps):
            self._table = self._table.with_more(self._known[-n_new:])
        return self._table


def _kinds(on: Bytes) -> tuple[Bytes, list[int]]:
    """Return the columns that differ, and which one each layer has: layers with the same blocks need the same."""
    kinds: dict[bytes, int] = {}
    kind_of = [kinds.setdefault(column.tobytes(), len(kinds)) for column in on.T]
    return on[:, [kind_of.index(kind) for kind in range(len(kinds))]], kind_of


def _turn(found: tuple[tuple[int, str], int, Bytes, int]) -> tuple[int, str]:
    return found[0]


def _behind(each: Bytes, last: Sequence[int]) -> Bytes:
    """Return what comes before each in the backward pass: in reverse, some last of all."""
    others = [place for place in range(len(each)) if place not in last]
    order = [*reversed(others), *reversed(last)]
    done = np.empty_like(each)
    done[order] = each[order].cumsum(axis=0) - each[order]
    return done
