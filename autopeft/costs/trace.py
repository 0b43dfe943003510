"""What happened to storages in one step, in order, and what can be read from it: the peak, FLOPs, the timeline."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from autopeft.costs.tracker import CATEGORIES, Category

Phase = Literal["forward", "backward", "optimizer", "evaluation", "writing"]
"""Of a training step; all of an evaluation step; all of a forward pass that writes."""
Direction = Literal["forward", "backward"]

_RESIDENT = ("base", "trainable")
_keys = itertools.count()
_NO_KEY = -1
_RECENT = 64
"""Events after a sum among which what it made is found."""


def new_key() -> int:
    """Return a key that no storage of this process has or had."""
    return next(_keys)


@dataclass(frozen=True, slots=True)
class Made:
    """A storage was made, or was there before, under a key that no other one of the step has.

    Attributes:
        where: The module that made it; empty where nobody asked.
    """

    key: int
    n_bytes: int
    category: Category
    where: str = ""


@dataclass(frozen=True, slots=True)
class Freed:
    """A storage died."""

    key: int


@dataclass(frozen=True, slots=True)
class Moved:
    """A storage is for something else from now on."""

    key: int
    category: Category


@dataclass(frozen=True, slots=True)
class Borrowed:
    """A kernel took scratch memory and gave it back."""

    n_bytes: int
    where: str = ""


@dataclass(frozen=True, slots=True)
class Computed:
    """An operator, called by its packet, made floating-point operations."""

    packet: Any
    n_flops: int


@dataclass(frozen=True, slots=True)
class Begun:
    """A phase of the step began."""

    phase: Phase


@dataclass(frozen=True, slots=True)
class Entered:
    """The step entered a interval of layers that is one of several equal ones; `part` None means that it left them.

    Attributes:
        group: Which layers repeat: an index.
        direction: Forward, or backward.
        part: Which of those that were run.
    """

    group: int
    direction: Direction
    part: int | None


Event = Made | Freed | Moved | Borrowed | Computed | Begun | Entered


class Trace:
    """Writes down what a `StorageTracker` tells of, as its observer.

    Attributes:
        events: In order; first what was there before the step.
    """

    def __init__(self, where: Callable[[int], str] | None = None) -> None:
        """Start with nothing.

        Args:
            where: Says which module a storage is of, by the tracker's key; asked for every one.
        """
        self.events: list[Event] = []
        self._where = where or (lambda _: "")
        self._own: dict[int, int] = {}  # our keys by the tracker's, which are used again
        self._dead: dict[int, int] = {}

    def made(self, key: int, n_bytes: int, category: Category) -> None:
        """Note a storage; what stays for all steps keeps its key, so that it is known in each."""
        self._own[key] = key if category in _RESIDENT else new_key()
        self.events.append(Made(self._own[key], n_bytes, category, self._where(key)))

    def freed(self, key: int) -> None:
        """Note the end of a storage."""
        self._dead[key] = self._own.pop(key)
        self.events.append(Freed(self._dead[key]))

    def moved(self, key: int, category: Category) -> None:
        """Note what a storage is for from now on."""
        self.events.append(Moved(self._own[key], category))

    def borrowed(self, n_bytes: int) -> None:
        """Note what a kernel needed while it ran."""
        self.events.append(Borrowed(n_bytes, self._where(_NO_KEY)))

    def computed(self, packet: Any, n_flops: int) -> None:
        """Note the operations of an operator."""
        self.events.append(Computed(packet, n_flops))

    def made_in_place(self, target: int, new: int) -> None:
        """Correct what was noted of a sum: it went on in the storage of its first operand, and made none.

        Nobody may have wanted the sum: then it is dead already.
        """
        known = self._own if new in self._own else self._dead
        made, kept = known[new], self._dead[target]
        recent = max(0, len(self.events) - _RECENT)
        self.events[recent:] = [
            Freed(kept) if event == Freed(made) else event
            for event in self.events[recent:]
            if not (isinstance(event, Made) and event.key == made) and event != Freed(kept)
        ]
        known[new] = kept

    def begin(self, phase: Phase) -> None:
        """Note that a phase of the step begins."""
        self.events.append(Begun(phase))

    def enter(self, group: int, direction: Direction, part: int | None) -> None:
        """Note where in a group of repeating layers the step is."""
        self.events.append(Entered(group, direction, part))


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a step came to.

    Attributes:
        peak_bytes: Highest sum of live storage bytes.
        at_peak: Bytes by category at the peak.
        peak_event: Index of the event that made the peak.
        flops: Floating-point operations by operator packet.
    """

    peak_bytes: int
    at_peak: dict[Category, int]
    peak_event: int
    flops: dict[Any, int]


def summarize(events: Iterable[Event]) -> Summary:
    """Return what the events of a step come to."""
    live: dict[Category, int] = dict.fromkeys(CATEGORIES, 0)
    storages: dict[int, Made] = {}
    flops: dict[Any, int] = defaultdict(int)
    total = peak = peak_event = 0
    at_peak = dict(live)
    for index, event in enumerate(events):
        scratch = 0
        match event:
            case Made(key, n_bytes, category):
                storages[key] = event
                live[category] += n_bytes
                total += n_bytes
            case Freed(key):
                gone = storages.pop(key)
                live[gone.category] -= gone.n_bytes
                total -= gone.n_bytes
            case Moved(key, category):
                before = storages[key]
                live[before.category] -= before.n_bytes
                live[category] += before.n_bytes
                storages[key] = replace(before, category=category)
            case Borrowed(n_bytes):
                scratch = n_bytes
            case Computed(packet, n_flops):
                flops[packet] += n_flops
        if total + scratch > peak:
            peak, peak_event = total + scratch, index
            at_peak = {**live, "scratch": scratch}
    return Summary(peak_bytes=peak, at_peak=at_peak, peak_event=peak_event, flops=flops)
