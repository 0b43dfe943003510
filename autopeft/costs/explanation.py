"""What the memory of a step is made of: by module and kind at the peak, and as it rises and falls."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from autopeft.costs.trace import Begun, Borrowed, Event, Freed, Made, Moved, Phase
from autopeft.costs.tracker import CATEGORIES, Category


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Where the memory of a design goes.

    Attributes:
        timeline: Live bytes by category, whenever they rose or fell: through the training step, then through
            the evaluation step, then through the writing of samples; each with its phase. As many points as there are
            changes.
        peak_at: Index in `timeline` of the first of its highest points.
        by_module: What is alive at that point: module, category and bytes, the largest first. A module is named
            by role where it has one (`layers.*.mlp_up`), otherwise by its path, with all layers as one;
            `loss`, `optimizer` and `inputs` are what no module made.
    """

    timeline: tuple[tuple[Phase, Mapping[Category, int]], ...]
    peak_at: int
    by_module: tuple[tuple[str, Category, int], ...]

    @property
    def peak_phase(self) -> Phase:
        """Return the phase of the peak."""
        return self.timeline[self.peak_at][0]

    @property
    def peak_bytes(self) -> int:
        """Return the bytes of the peak."""
        return sum(self.timeline[self.peak_at][1].values())


def explain(*steps: Sequence[Event]) -> Explanation:
    """Return where memory goes, from the events of steps; those without events are left out."""
    timelines = [(events, _timeline(events)) for events in steps if events]
    highest = [max(sum(live.values()) for _, live in timeline) for _, timeline in timelines]
    timeline = [point for _, points in timelines for point in points]
    peak_bytes = max(highest)
    return Explanation(
        timeline=tuple(timeline),
        peak_at=next(place for place, (_, live) in enumerate(timeline) if sum(live.values()) == peak_bytes),
        by_module=_by_module(timelines[highest.index(peak_bytes)][0], peak_bytes),
    )


def _timeline(events: Iterable[Event]) -> list[tuple[Phase, Mapping[Category, int]]]:
    """Return live bytes after each change, from the first phase on."""
    live: dict[Category, int] = dict.fromkeys(CATEGORIES, 0)
    storages: dict[int, tuple[int, Category]] = {}
    points: list[tuple[Phase, Mapping[Category, int]]] = []
    phase: Phase | None = None
    for event in events:
        match event:
            case Made(key, n_bytes, category):
                storages[key] = (n_bytes, category)
                live[category] += n_bytes
            case Freed(key):
                n_bytes, category = storages.pop(key)
                live[category] -= n_bytes
            case Moved(key, category):
                n_bytes, before = storages[key]
                storages[key] = (n_bytes, category)
                live[before] -= n_bytes
                live[category] += n_bytes
            case Begun(begun):
                phase = begun
            case Borrowed(n_bytes) if phase is not None and n_bytes:
                points.append((phase, {**live, "scratch": n_bytes}))
        if phase is not None and (not points or points[-1][1] != live):
            points.append((phase, dict(live)))
    return points


def _by_module(events: Iterable[Event], peak_bytes: int) -> tuple[tuple[str, Category, int], ...]:
    """Return what is alive when the live bytes first reach the peak."""
    storages: dict[int, Made] = {}
    total = 0
    borrowed: Borrowed | None = None
    for event in events:
        borrowed = None
        match event:
            case Made(key, n_bytes):
                storages[key] = event
                total += n_bytes
            case Freed(key):
                total -= storages.pop(key).n_bytes
            case Moved(key, category):
                storages[key] = replace(storages[key], category=category)
            case Borrowed():
                borrowed = event
        if total + (borrowed.n_bytes if borrowed else 0) == peak_bytes:
            break
    sums: dict[tuple[str, Category], int] = defaultdict(int)
    for made in storages.values():
        sums[made.where, made.category] += made.n_bytes
    if borrowed is not None:
        sums[borrowed.where, "scratch"] += borrowed.n_bytes
    found = [(where, category, n_bytes) for (where, category), n_bytes in sums.items() if n_bytes]
    return tuple(sorted(found, key=lambda row: -row[2]))
