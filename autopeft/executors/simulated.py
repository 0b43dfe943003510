"""Runs segments under a virtual clock, so that a search loop is tested in milliseconds.

A worker says what a segment returns; a duration function says how long it would have taken. The clock
jumps from the end of one segment to the end of the next.
"""

import heapq
import itertools
from collections.abc import Callable

from autopeft.executors.base import SegmentWorker
from autopeft.spec.trial import Segment, SegmentResult


class SimulatedExecutor:
    """`n_workers` virtual workers.

    Args:
        worker: Answers each segment; it is run when the segment ends on the virtual clock.
        seconds: How long a segment takes on the virtual clock.
        should_stop: Passed on to the worker.
    """

    def __init__(
        self,
        worker: SegmentWorker,
        seconds: Callable[[Segment], float],
        *,
        n_workers: int = 1,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.n_workers = n_workers
        self._worker = worker
        self._seconds = seconds
        self._should_stop = should_stop
        self._clock = 0.0
        self._running: list[tuple[float, int, Segment]] = []
        self._order = itertools.count()

    def free(self) -> int:
        """Return how many more segments can be submitted now."""
        return self.n_workers - len(self._running)

    def submit(self, segment: Segment) -> None:
        """Start a segment at the present virtual time. Raises RuntimeError where no worker is free."""
        if self.free() <= 0:
            raise RuntimeError(f"submit needs a free worker, but all {self.n_workers} run a segment")
        seconds = self._seconds(segment)
        if segment.deadline_seconds is not None:
            seconds = min(seconds, segment.deadline_seconds)
        heapq.heappush(self._running, (self._clock + seconds, next(self._order), segment))

    def wait(self) -> list[SegmentResult]:
        """Advance the clock to the next end of a segment and return every result due then."""
        if not self._running:
            return []
        self._clock = self._running[0][0]
        results = []
        while self._running and self._running[0][0] <= self._clock:
            _, _, segment = heapq.heappop(self._running)
            results.append(self._worker.run(segment, self._should_stop))
        return results

    def now(self) -> float:
        """Return virtual seconds since the start."""
        return self._clock

    def close(self) -> None:
        """Forget what runs."""
        self._running.clear()
