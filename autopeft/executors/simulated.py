"""Runs segments under a virtual clock, so that a search loop is tested in milliseconds, a cluster of 1,000 workers too.

A worker says what a segment returns; a duration function says how long it would have taken. The clock jumps from
what happens next to what happens then. Faults happen with given probabilities, the same for the same seed.
"""

import heapq
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from autopeft.executors.base import SegmentWorker
from autopeft.spec.trial import Segment, SegmentResult, SegmentStatus


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What goes wrong, each with its probability for a segment.

    Attributes:
        dies: The worker's process ends while it runs.
        hangs: The worker never answers; it is given up after `hang_factor` times what the segment takes.
        out_of_memory: The worker runs out of memory.
        not_finite: Its scores are NaN or infinite.
        raises: It raises an error.
        away_seconds: How long it takes to replace a worker that died or was given up; the cluster is smaller meanwhile.
    """

    dies: float = 0.0
    hangs: float = 0.0
    out_of_memory: float = 0.0
    not_finite: float = 0.0
    raises: float = 0.0
    away_seconds: float = 30.0
    hang_factor: float = 5.0
    seed: int = 0

    def draw(self, random_numbers: random.Random) -> str:
        """Return the name of what goes wrong, or an empty string."""
        at, total = random_numbers.random(), 0.0
        for name in ("dies", "hangs", "out_of_memory", "not_finite", "raises"):
            total += getattr(self, name)
            if at < total:
                return name
        return ""


class _Due(NamedTuple):
    """What happens at a time: a segment ends, or a worker comes back (`segment` is None)."""

    seconds: float
    order: int
    segment: Segment | None = None
    fault: str = ""


class SimulatedExecutor:
    """`n_workers` virtual workers.

    Args:
        worker: Answers each segment; it is run when the segment ends on the virtual clock.
        seconds: How long a segment takes on the virtual clock.
        should_stop: Passed on to the worker.
        faults: What goes wrong.
        with_real_time: Whether the clock also advances by the real seconds that the driver takes between its calls, as
            it does for a driver that is slower than its workers. What `worker` takes to answer does not count.

    Attributes:
        busy_seconds: What was submitted takes on the workers, added up.
        n_faults: How often each of `Faults` has happened.
    """

    def __init__(
        self,
        worker: SegmentWorker,
        seconds: Callable[[Segment], float],
        *,
        n_workers: int = 1,
        should_stop: Callable[[], bool] = lambda: False,
        faults: Faults | None = None,
        with_real_time: bool = False,
    ) -> None:
        self.n_workers = n_workers
        self.busy_seconds = 0.0
        self.n_faults: Counter[str] = Counter()
        self._worker = worker
        self._seconds = seconds
        self._should_stop = should_stop
        self._faults = faults or Faults()
        self._random = random.Random(self._faults.seed)
        self._with_real_time = with_real_time
        self._clock = 0.0
        self._seen = time.perf_counter()
        self._due: list[_Due] = []
        self._n_running = 0
        self._n_away = 0
        self._order = itertools.count()

    def free(self) -> int:
        """Return how many more segments can be submitted now."""
        return self.n_workers - self._n_running - self._n_away

    def submit(self, segment: Segment) -> None:
        """Start a segment at the present virtual time. Raises RuntimeError where no worker is free."""
        if self.free() <= 0:
            raise RuntimeError(f"submit needs a free worker, but all {self.n_workers} run a segment, or are away")
        seconds = self._seconds(segment)
        if segment.deadline_seconds is not None:
            seconds = min(seconds, segment.deadline_seconds)
        fault = self._faults.draw(self._random)
        if fault == "hangs":
            seconds *= self._faults.hang_factor
        elif fault and fault != "not_finite":
            seconds *= self._random.random()
        self._n_running += 1
        self.busy_seconds += seconds
        self._add(self.now() + seconds, segment, fault)

    def wait(self) -> list[SegmentResult]:
        """Advance the clock to what happens next, and return every result due then.

        None is due where a worker has come back, or where nothing runs.
        """
        if not self._due:
            return []
        self._clock = max(self.now(), self._due[0].seconds)
        results = []
        while self._due and self._due[0].seconds <= self._clock:
            _, _, segment, fault = heapq.heappop(self._due)
            if segment is None:
                self._n_away -= 1
            else:
                self._n_running -= 1
                results.append(self._end(segment, fault))
        self._seen = time.perf_counter()
        return results

    def now(self) -> float:
        """Return virtual seconds since the start."""
        if self._with_real_time:
            seen, self._seen = self._seen, time.perf_counter()
            self._clock += self._seen - seen
        return self._clock

    def close(self) -> None:
        """Forget what runs."""
        self._due.clear()
        self._n_running = self._n_away = 0

    def _add(self, seconds: float, segment: Segment | None = None, fault: str = "") -> None:
        heapq.heappush(self._due, _Due(seconds, next(self._order), segment, fault))

    def _end(self, segment: Segment, fault: str) -> SegmentResult:
        """Return what a segment ends with, and what becomes of its worker."""
        if not fault:
            return self._worker.run(segment, self._should_stop)
        self.n_faults[fault] += 1
        lost = SegmentResult(trial=segment.trial, status=SegmentStatus.LOST, examples=segment.start)
        match fault:
            case "not_finite":
                result = self._worker.run(segment, self._should_stop)
                value = self._random.choice([float("nan"), float("inf"), float("-inf")])
                return replace(result, scores=dict.fromkeys(result.scores, value))
            case "out_of_memory":
                return replace(lost, status=SegmentStatus.OUT_OF_MEMORY, error="MemoryError: simulated")
            case "raises":
                return replace(lost, status=SegmentStatus.FAILED, error="ValueError: simulated")
        self._n_away += 1
        self._add(self._clock + self._faults.away_seconds)
        why = "the worker's process died" if fault == "dies" else "the worker hung"
        return replace(lost, error=f"{why}: simulated")
