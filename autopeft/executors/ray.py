"""Runs segments on Ray: a local one that is started on demand, one in use already, or a cluster.

Each worker is an actor that is made once and keeps its loaded base models between segments. Segments go in and
results come out; checkpoints travel with them as bytes, so no file system is shared. Data travels once, through the
object store: workers on one node read the same (read-only) memory.
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

from autopeft.errors import ExecutorError
from autopeft.executors.actor import SegmentActor
from autopeft.executors.base import SegmentWorker
from autopeft.executors.ray_cluster import START_SECONDS, RayCluster, last_line, never_started
from autopeft.spec.trial import Segment, SegmentResult, SegmentStatus

Setup = TypeVar("Setup")

MAX_START_FAILURES = 3
"""Workers in a row that could not be started, after which the search ends."""
HANG_SECONDS = 300.0
"""How far beyond its deadline a segment is waited for: it may be loading a large model."""
POLL_SECONDS = 0.1


@dataclass(kw_only=True, eq=False)
class _Slot:
    """One worker's place.

    Attributes:
        started: Answers with the process id once the worker is made; None from then on.
        since: When the worker was asked for.
        bases: Quantizations of the base models that it has met: it holds them loaded.
        segment: What was submitted and has not come back.
        submitted: When it was.
        number: Counts segments, so that a request to stop meets the one that it means.
        result: Answers with the result; None until the segment is sent out.
    """

    actor: Any
    started: Any
    since: float
    pid: int | None = None
    bases: set[str] = field(default_factory=set)
    segment: Segment | None = None
    submitted: float = 0.0
    number: int = -1
    result: Any = None
    told_to_stop: bool = False


class RayExecutor:
    """Runs segments in `n_workers` processes that Ray places, one worker in each.

    A worker that dies, runs out of memory or hangs is replaced by a new one; what it ran comes back as failed.

    Args:
        cluster: Where the workers run; closing the executor leaves it open.
        make_worker: An importable function, called with `setup` in every worker, once.
        setup: A value; its arrays are shared by the workers of a node, read-only.
        should_stop: Asked while waiting; true ends what runs with checkpoints.
        hang_seconds: How far beyond its deadline a segment is waited for.
    """

    def __init__(
        self,
        cluster: RayCluster,
        make_worker: Callable[[Setup], SegmentWorker],
        setup: Setup,
        should_stop: Callable[[], bool],
        *,
        hang_seconds: float = HANG_SECONDS,
    ) -> None:
        """Start the workers; the first segments wait for them."""
        placement = cluster.placement
        self.n_workers = cluster.n_workers
        self._should_stop = should_stop
        self._hang_seconds = hang_seconds
        self._actor = ray.remote(concurrency_groups={"control": 1})(SegmentActor).options(**placement)
        self._recipe = ray.put((make_worker, setup))
        self._numbers = itertools.count()
        self._n_start_failures = 0
        self._slots = [self._fill(_Slot(actor=None, started=None, since=0.0)) for _ in range(self.n_workers)]

    @property
    def pids(self) -> tuple[int | None, ...]:
        """Return the process id of each worker that has been seen to have started."""
        return tuple(slot.pid for slot in self._slots)

    def free(self) -> int:
        """Return how many more segments can be submitted now."""
        return sum(slot.segment is None for slot in self._slots)

    def submit(self, segment: Segment) -> None:
        """Send a segment out, or keep it until its worker has started. Raises RuntimeError where none is free."""
        free = [slot for slot in self._slots if slot.segment is None]
        if not free:
            raise RuntimeError(f"submit needs a free worker, but all {self.n_workers} run a segment")
        base = segment.design.quantization
        slot = min(free, key=lambda slot: (slot.started is not None, base not in slot.bases))
        slot.segment, slot.submitted, slot.number = segment, self.now(), next(self._numbers)
        slot.result, slot.told_to_stop = None, False
        if not self._should_stop():
            self._send_out(slot, segment)

    def wait(self) -> list[SegmentResult]:
        """Block until a segment has ended, however, and return the results of all that have.

        Raises:
            ExecutorError: Workers cannot be started.
        """
        while any(slot.segment for slot in self._slots):
            results = [
                self._free(slot, result)
                for slot in self._slots
                if slot.segment is not None and (result := self._advance(slot, slot.segment)) is not None
            ]
            if results:
                return results
            ray.wait([slot.result or slot.started for slot in self._slots if slot.segment], timeout=POLL_SECONDS)
        return []

    def now(self) -> float:
        """Return monotonic seconds."""
        return time.monotonic()

    def close(self) -> None:
        """End the workers at once, with what they run."""
        slots, self._slots = self._slots, []
        for slot in slots:
            ray.kill(slot.actor)

    # One worker -----------------------------------------------------------------------------------------------

    def _fill(self, slot: _Slot) -> _Slot:
        """Put a new worker in a slot, in place of the one that it holds; what was submitted to it stays."""
        if slot.actor is not None:
            ray.kill(slot.actor)
        slot.actor = self._actor.remote(self._recipe)
        slot.started, slot.since = slot.actor.pid.remote(), self.now()
        slot.pid, slot.result, slot.bases = None, None, set()
        return slot

    def _free(self, slot: _Slot, result: SegmentResult) -> SegmentResult:
        slot.segment = None
        return result

    def _advance(self, slot: _Slot, segment: Segment) -> SegmentResult | None:
        """Take a slot's segment as far as it goes without waiting; return its result once there is one."""
        if slot.result is None:
            if self._should_stop():
                return SegmentResult(trial=segment.trial, status=SegmentStatus.INTERRUPTED, examples=segment.start)
            self._send_out(slot, segment)
        elif _is_ready(slot.result):
            return self._collect(slot, segment)
        elif self._overdue(slot, segment):
            why = f"the worker hung: it was {self._hang_seconds:g} s beyond its deadline"
            return self._lose(slot, segment, SegmentStatus.FAILED, why)
        elif self._should_stop() and not slot.told_to_stop:
            slot.told_to_stop = True
            slot.actor.stop.options(concurrency_group="control").remote(slot.number)
        return None

    def _send_out(self, slot: _Slot, segment: Segment) -> None:
        """Send a slot's segment to its worker, if that has started."""
        if not self._has_started(slot):
            return
        if segment.deadline_seconds is not None:
            left = segment.deadline_seconds - (self.now() - slot.submitted)
            segment = replace(segment, deadline_seconds=max(0.0, left))
        slot.bases.add(segment.design.quantization)
        slot.result = slot.actor.run.remote(segment, slot.number)

    def _has_started(self, slot: _Slot) -> bool:
        if slot.started is None:
            return True
        if not _is_ready(slot.started):
            if self.now() - slot.since > START_SECONDS:
                raise ExecutorError(never_started())
            return False
        try:
            slot.pid = ray.get(slot.started)
        except RayError as error:
            self._n_start_failures += 1
            if self._n_start_failures >= MAX_START_FAILURES:
                raise ExecutorError(
                    f"workers must start, but {self._n_start_failures} in a row did not, the last one with: "
                    f"{last_line(error)}"
                ) from error
            self._fill(slot)
            return False
        slot.started, self._n_start_failures = None, 0
        return True

    def _overdue(self, slot: _Slot, segment: Segment) -> bool:
        deadline = segment.deadline_seconds
        return deadline is not None and self.now() - slot.submitted > deadline + self._hang_seconds

    def _collect(self, slot: _Slot, segment: Segment) -> SegmentResult:
        try:
            result: SegmentResult = ray.get(slot.result)
        except RayError as error:
            if isinstance(error, OutOfMemoryError) or isinstance(getattr(error, "cause", None), MemoryError):
                return self._lose(
                    slot, segment, SegmentStatus.OUT_OF_MEMORY, "the worker's node ran out of memory", error
                )
            why = "the worker's process died while it ran: it was killed, or the node ran out of memory"
            if isinstance(error, RayTaskError):
                why = f"the worker broke: {last_line(error)}"
            return self._lose(slot, segment, SegmentStatus.FAILED, why, error)
        if result.status is SegmentStatus.OUT_OF_MEMORY:
            self._fill(slot)  # what an allocator could not give back goes with the process
        return result

    def _lose(
        self, slot: _Slot, segment: Segment, status: SegmentStatus, why: str, error: RayError | None = None
    ) -> SegmentResult:
        """Replace a worker that is of no more use, and say what became of its segment."""
        details = "" if error is None else f"{error}\n\n"
        pid = slot.pid
        self._fill(slot)
        return SegmentResult(
            trial=segment.trial,
            status=status,
            examples=segment.start,
            error=f"{details}{why} (process {pid}); another one takes its place",
        )


def _is_ready(answer: Any) -> bool:
    ready, _ = ray.wait([answer], timeout=0)
    return bool(ready)
