"""Which worker a segment goes to: where its memory fits, for good, whoever else runs on the same device.

Pure values and one function; nothing here knows Ray. Workers that share a device (a GPU, or the memory of a node)
never have more memory promised to them than it has.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

OVERHEAD_BYTES = 512 * 2**20
"""What a worker takes on its device besides tensors: a CUDA context (0.3 to 0.6 GiB), or a process with torch in it."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """What a segment asks of a worker.

    Attributes:
        n_bytes: Memory at most, its base model included; 0 where that is not known, which fits anywhere.
        base: Quantization of its base model.
    """

    n_bytes: int
    base: str


@dataclass(frozen=True, kw_only=True)
class Seat:
    """A worker that has started, as placement sees it.

    Attributes:
        device: What it shares with the other workers of the same name.
        capacity_bytes: Memory of that device; None where that is not known, which holds anything.
        running: What it runs; None while it is idle.
        held: Bytes of the base models that it keeps loaded, by quantization.
    """

    device: str
    capacity_bytes: int | None
    running: Need | None = None
    held: Mapping[str, int] = field(default_factory=dict)

    @property
    def used_bytes(self) -> int:
        """Return what it has, or may come to have, on its device."""
        need = self.running
        other = sum(n for base, n in self.held.items() if need is None or base != need.base)
        return OVERHEAD_BYTES + other + (0 if need is None else max(need.n_bytes, self.held.get(need.base, 0)))

    def taking(self, need: Need) -> "Seat":
        """Return it with a segment to run."""
        return Seat(device=self.device, capacity_bytes=self.capacity_bytes, running=need, held=self.held)

    def emptied(self) -> "Seat":
        """Return it as it is once its process has been replaced by a new one."""
        return Seat(device=self.device, capacity_bytes=self.capacity_bytes)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What to do now.

    Attributes:
        starts: Seat by waiting segment, both by position.
        nowhere: Waiting segments that no device could hold even if it were empty.
        reserved: Devices that are kept clear for a segment that waits for room: nothing else starts there.
        replace: Idle seats whose loaded bases stand in the way: a new process in their place holds nothing.
    """

    starts: Mapping[int, int]
    nowhere: tuple[int, ...]
    reserved: frozenset[str]
    replace: tuple[int, ...]


def plan(waiting: Sequence[Need], seats: Sequence[Seat]) -> Placement:
    """Decide which waiting segments start where; the first come first.

    A segment takes the smallest device that has room for it, so that large ones stay free for what needs them, and
    there a worker that holds its base model already. One that fits a device, but not now, reserves that where least
    stands in its way; what comes after it goes elsewhere, so that small segments don't starve a large one.

    Omits: filling a reserved device with what would end before the reserving segment can start: ends are not known.
    """
    board = _Board(seats)
    starts: dict[int, int] = {}
    nowhere: list[int] = []
    reserved: set[str] = set()
    replace: set[int] = set()
    for position, need in enumerate(waiting):
        fitting = [i for i in range(len(seats)) if need.n_bytes <= board.room(i)]
        usable = [i for i in fitting if board.seats[i].device not in reserved]
        ready = [i for i in usable if board.seats[i].running is None and board.excess(need, i) <= 0]
        if not fitting:
            nowhere.append(position)
        elif ready:
            starts[position] = chosen = min(ready, key=lambda i: _preference(need, board.seats[i]))
            board.put(chosen, board.seats[chosen].taking(need))
        elif usable:
            nearest = min(usable, key=lambda i: board.excess(need, i))
            reserved.add(board.seats[nearest].device)
            replace |= _in_the_way(need, board, board.seats[nearest].device)
    return Placement(
        starts=starts, nowhere=tuple(nowhere), reserved=frozenset(reserved), replace=tuple(sorted(replace))
    )


def room(seats: Sequence[Seat]) -> list[float]:
    """Return the most that a segment may need on each seat, were all workers of its device idle and empty."""
    board = _Board(seats)
    return [board.room(i) for i in range(len(seats))]


class _Board:
    """Seats, and what is in use on each device."""

    def __init__(self, seats: Sequence[Seat]) -> None:
        self.seats = list(seats)
        self.used: Counter[str] = Counter()
        self.n_seats = Counter(seat.device for seat in seats)
        for seat in seats:
            self.used[seat.device] += seat.used_bytes

    def put(self, i: int, seat: Seat) -> None:
        self.used[seat.device] += seat.used_bytes - self.seats[i].used_bytes
        self.seats[i] = seat

    def room(self, i: int) -> float:
        seat = self.seats[i]
        if seat.capacity_bytes is None:
            return math.inf
        return max(0, seat.capacity_bytes - OVERHEAD_BYTES * self.n_seats[seat.device])

    def excess(self, need: Need, i: int) -> int:
        """Return by how many bytes a device would be overfull with a segment on a seat; 0 or less where it fits."""
        seat = self.seats[i]
        if seat.capacity_bytes is None or not need.n_bytes:
            return 0
        return self.used[seat.device] - seat.used_bytes + seat.taking(need).used_bytes - seat.capacity_bytes


def _preference(need: Need, seat: Seat) -> tuple[float, bool, int]:
    capacity = math.inf if seat.capacity_bytes is None else seat.capacity_bytes
    return capacity, need.base not in seat.held, seat.used_bytes


def _in_the_way(need: Need, board: _Board, device: str) -> set[int]:
    """Return the idle seats to empty so that a segment fits a device; none where what runs there is in the way."""
    idle = [i for i, seat in enumerate(board.seats) if seat.device == device and seat.running is None]
    trial, emptied = _Board(board.seats), set[int]()
    # Those that hold the segment's own base come last, and before them the largest first.
    for i in sorted(idle, key=lambda i: (need.base in board.seats[i].held, -board.seats[i].used_bytes)):
        if not board.seats[i].held:
            continue
        trial.put(i, board.seats[i].emptied())
        emptied.add(i)
        if any(trial.excess(need, j) <= 0 for j in idle):
            return emptied
    return set()
