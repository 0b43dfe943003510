"""From the trace of a step that ran a few parts of a repeat to the trace of a step that runs all of them.

Of the parts that ran, the two inner ones must have done the same: made storages of the same sizes in the same order,
and dropped the same ones of their own, of their neighbours' and of their other direction's. Then those between them,
which did not run, do so too.

A storage of a part is known by a name: the direction in which it was made, the part, and its number among what
the part made in that direction. Where it is dropped elsewhere (autocast drops its casts of all layers at once),
those of the parts that did not run are dropped with it.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from autopeft.costs.repeats import N_FIRST, N_LAST, Repeat
from autopeft.costs.trace import Begun, Direction, Entered, Event, Freed, Made, Moved, new_key

Place = tuple[Direction, int]
"""Direction and part."""
Name = tuple[Direction, int, int]
"""Direction and part where a storage was made, and its number among those."""

_N_RUN = N_FIRST + N_LAST
_INNER = (N_FIRST - 1, N_FIRST)


def unrolled(events: Sequence[Event], repeats: Sequence[Repeat]) -> list[Event] | None:
    """Return the events of a step of all layers, or None where the parts that ran do not say what the others do.

    Args:
        events: Of a step under `few_layers`.
        repeats: Those that it was given.
    """
    whole: list[Event] | None = list(events)
    for group, repeat in enumerate(repeats):
        if whole is not None:
            whole = _Unrolling(whole, group, repeat.count).events()
    return whole


@dataclass
class _Stretch:
    """Events of one place; `place` is None outside of the repeat."""

    place: Place | None
    events: list[Event] = field(default_factory=list)


class _Unrolling:
    """The work on one repeat."""

    def __init__(self, events: Sequence[Event], group: int, count: int) -> None:
        self._stretches = list(_cut(events, group))
        self._count = count
        self._names: dict[int, Name] = {}
        self._keys: dict[Name, int] = {}
        self._apart: set[tuple[Direction, int]] = set()  # direction and number of what all parts drop at once
        self._name_storages()

    def events(self) -> list[Event] | None:
        """Return the events of all parts."""
        by_place = {interval.place: interval.events for interval in self._stretches if interval.place is not None}
        directions: list[Direction] = ["forward", "backward"]
        present = [[(direction, part) in by_place for part in range(_N_RUN)] for direction in directions]
        if not all(present[0]) or (any(present[1]) and not all(present[1])) or not self._settle_uses():
            return None
        for direction in directions:
            inner = [self._relative(by_place.get((direction, part), ()), direction, part) for part in _INNER]
            if inner[0] != inner[1]:
                return None
        return list(self._written())

    def _name_storages(self) -> None:
        for interval in self._stretches:
            if interval.place is not None:
                made = [event for event in interval.events if isinstance(event, Made)]
                for number, event in enumerate(made):
                    direction, part = interval.place
                    self._names[event.key] = (direction, part, number)
                    self._keys[direction, self._ordinal(part), number] = event.key

    def _ordinal(self, part: int) -> int:
        """Return which of all parts it is that ran as `part`."""
        return part if part < N_FIRST else part + self._count - _N_RUN

    def _settle_uses(self) -> bool:
        """Find what each part drops or puts to another use, and what all do at once; return whether that is all."""
        uses: dict[Name, list[tuple[type, Place | None]]] = defaultdict(list)
        for interval in self._stretches:
            for event in interval.events:
                if isinstance(event, Freed | Moved) and event.key in self._names:
                    uses[self._names[event.key]].append((type(event), interval.place))
        for name in self._names.values():
            direction, part, number = name
            if part != _INNER[0]:
                continue
            first, second = uses[name], uses[direction, _INNER[1], number]
            if [kind for kind, _ in first] != [kind for kind, _ in second]:
                return False
            places = [(one, other) for (_, one), (_, other) in zip(first, second, strict=True)]
            if all(one == other for one, other in places):
                self._apart.add((direction, number))
            elif not all(one and other and one[0] == other[0] and one[1] + 1 == other[1] for one, other in places):
                return False
        return True

    def _relative(self, events: Sequence[Event], direction: Direction, part: int) -> list[object]:
        """Return events that are equal for parts that do the same."""
        return [self._relative_event(event, part) for event in events]

    def _relative_event(self, event: Event, part: int) -> object:
        if isinstance(event, Made):
            return replace(event, key=0)
        if isinstance(event, Freed | Moved) and event.key in self._names:
            direction, born, number = self._names[event.key]
            return (direction, born - part, number, replace(event, key=0))
        return event

    def _written(self) -> Iterator[Event]:
        for interval in self._stretches:
            if interval.place is None:
                yield from self._outside(interval.events)
                continue
            direction, part = interval.place
            copies = range(N_FIRST, self._count - N_LAST)
            if (direction, part) == ("backward", _INNER[0]):
                for ordinal in reversed(copies):
                    yield from self._part(interval.events, part, direction, ordinal)
            yield from self._part(interval.events, part, direction, self._ordinal(part))
            if (direction, part) == ("forward", _INNER[0]):
                for ordinal in copies:
                    yield from self._part(interval.events, part, direction, ordinal)

    def _part(self, events: Sequence[Event], part: int, direction: Direction, ordinal: int) -> Iterator[Event]:
        """Yield the events of a part as those of the part that is `ordinal` among all."""
        number = 0
        for event in events:
            if isinstance(event, Made):
                key = self._keys.setdefault((direction, ordinal, number), new_key())
                number += 1
                yield replace(event, key=key)
            elif isinstance(event, Freed | Moved) and event.key in self._names:
                born_in, born, own_number = self._names[event.key]
                if born in _INNER and (born_in, own_number) in self._apart:
                    yield from self._of_all(event)
                elif born in _INNER or part in _INNER:
                    yield replace(event, key=self._keys[born_in, ordinal + born - part, own_number])
                else:
                    yield event
            else:
                yield event

    def _outside(self, events: Sequence[Event]) -> Iterator[Event]:
        for event in events:
            if isinstance(event, Freed | Moved) and event.key in self._names:
                yield from self._of_all(event)
            else:
                yield event

    def _of_all(self, event: Freed | Moved) -> Iterator[Event]:
        """Yield an event, and with that of an inner part those of the parts that did not run."""
        yield event
        direction, part, number = self._names[event.key]
        if part == _INNER[1]:
            for ordinal in range(N_FIRST, self._count - N_LAST):
                yield replace(event, key=self._keys[direction, ordinal, number])


def _cut(events: Sequence[Event], group: int) -> Iterator[_Stretch]:
    """Yield the intervals of a step: those of the group's parts, and what is between them."""
    interval = _Stretch(None)
    for event in events:
        if isinstance(event, Entered | Begun):
            yield interval
            interval = _Stretch(None)
            if isinstance(event, Begun) or event.group != group:
                interval.events.append(event)
            elif event.part is not None:
                interval.place = (event.direction, event.part)
        else:
            interval.events.append(event)
    yield interval
