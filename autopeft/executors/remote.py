"""One worker on Ray: the process that is it now, what that runs, and how it is replaced."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayError

from autopeft.executors.actor import Place, Report
from autopeft.executors.folder_transfer import Folder, Lacking
from autopeft.executors.placement import Need, Seat
from autopeft.executors.ray_cluster import last_line
from autopeft.spec.trial import Segment, SegmentResult, SegmentStatus

SLOW_FACTOR = 10.0
"""Times its predicted seconds that a segment may take before its worker is taken to hang."""
LOADING_FACTOR = 3.0
"""Times the usual patience with a worker that must first load its base model, which may come over a network."""
BLIND_SECONDS = 3 * 24 * 3600.0
"""What a segment may take of which nothing says how long it should: no step of the study was ever timed."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A segment that was submitted.

    Attributes:
        number: Counts segments, so that a request to stop meets the one that it means.
        submitted: When it was, on the executor's clock.
    """

    segment: Segment
    number: int
    submitted: float

    @property
    def need(self) -> Need:
        """Return what it asks of a worker."""
        return Need(n_bytes=self.segment.memory_bytes or 0, base=self.segment.design.quantization)

    def due(self, now: float) -> "Job":
        """Return it with the time that waiting has left of its deadline."""
        if self.segment.deadline_seconds is None:
            return self
        left = max(0.0, self.segment.deadline_seconds - (now - self.submitted))
        return replace(self, segment=replace(self.segment, deadline_seconds=left), submitted=now)

    def ended(self, status: SegmentStatus, error: str = "") -> SegmentResult:
        """Return the result of a segment that got no further."""
        return SegmentResult(trial=self.segment.trial, status=status, examples=self.segment.start, error=error)


class RemoteWorker:
    """A worker's place: the actor in it is replaced by a new one when it is of no more use.

    Attributes:
        place: Where the present actor runs; None until it has started.
        job: What it runs; None while it is idle.
        since: When the present actor was asked for, or the last one ended.
    """

    def __init__(self, make_actor: Callable[[], Any], folders: Callable[[], Sequence[Folder]], now: float) -> None:
        """Ask Ray for the first actor.

        Args:
            make_actor: Asks for one.
            folders: Returns what the worker reads of the driver's, as it travels by then.
            now: On the executor's clock.
        """
        self._make_actor = make_actor
        self._folders = folders
        self._actor: Any = None
        self._told_to_stop = False
        self._sent = 0.0
        self.replace(now)

    def replace(self, now: float) -> None:
        """Put a new actor in the place of the present one; what that ran is forgotten."""
        self.rest(now)
        self._actor = self._make_actor()
        self.ask()

    def rest(self, now: float) -> None:
        """End the present actor and put none in its place for now; what it ran is forgotten."""
        self.kill()
        self._actor = self._answer = None
        self.place: Place | None = None
        self.job: Job | None = None
        self._held: Mapping[str, int] = {}
        self.since = now

    def ask(self) -> None:
        """Ask the present actor to start, with what has been put for its node by now."""
        self._answer = self._actor.place.remote(self._folders())

    def kill(self) -> None:
        """End the present actor's process, also one that hangs or was stopped."""
        if self._actor is not None:
            ray.kill(self._actor)

    @property
    def pending(self) -> Any | None:
        """Return what answers next: the start, or the segment; None while it is idle or rests."""
        return self._answer

    @property
    def rests(self) -> bool:
        """Return whether no actor was asked for: several in a row did not start."""
        return self._actor is None

    @property
    def idle(self) -> bool:
        """Return whether it has started and runs nothing."""
        return self.place is not None and self.job is None

    def seat(self) -> Seat:
        """Return it as placement sees it; it must have started."""
        assert self.place is not None
        running = None if self.job is None else self.job.need
        device, capacity = self.place.device, self.place.memory_bytes
        return Seat(device=device, capacity_bytes=capacity, running=running, held=self._held)

    def meet(self) -> Place | Lacking:
        """Take in the answer of an actor that has started, or has not; where its node lacks something, ask it again.

        Raises:
            RayError: The actor could not be made, or died.
        """
        answer: Place | Lacking = ray.get(self._answer)
        if isinstance(answer, Place):
            self.place, self._answer = answer, None
        return answer

    def run(self, job: Job, now: float) -> None:
        """Send a segment out."""
        self.job, self._sent, self._told_to_stop = job.due(now), now, False
        self._answer = self._actor.run.remote(self.job.segment, job.number)

    def stop(self) -> None:
        """Ask for an early end of what it runs, once."""
        if self.job is not None and not self._told_to_stop:
            self._told_to_stop = True
            self._actor.stop.options(concurrency_group="control").remote(self.job.number)

    def end(self, *, answered: bool, now: float, patience_seconds: float) -> SegmentResult | None:
        """Return the result of what it runs, once it has ended, however; the worker is replaced where it must be."""
        if self.job is None:
            return None
        if answered:
            return self._collect(self.job, now)
        if now - self._sent <= self._limit_seconds(self.job.segment, patience_seconds):
            return None
        why = f"the worker hung: after {now - self._sent:.0f} s there was no answer"
        return self._lose(self.job, SegmentStatus.LOST, why, now)

    def _limit_seconds(self, segment: Segment, patience_seconds: float) -> float:
        """Return after what time it is taken to hang: late rather than early, since a slow one would be lost."""
        patience = patience_seconds * (1.0 if segment.design.quantization in self._held else LOADING_FACTOR)
        deadline, expected = segment.deadline_seconds, segment.expected_seconds
        limits = [] if deadline is None else [deadline + patience]
        limits += [] if expected is None else [max(patience, SLOW_FACTOR * expected)]
        return min(limits, default=BLIND_SECONDS)

    def _collect(self, job: Job, now: float) -> SegmentResult:
        try:
            report: Report = ray.get(self._answer)
        except OutOfMemoryError as error:
            why = f"{error}\n\nthe worker's node ran out of memory"
            return self._lose(job, SegmentStatus.OUT_OF_MEMORY, why, now)
        except RayError as error:
            # Died, unreachable, or its result went with its node: nothing says that the design is at fault.
            return self._lose(job, SegmentStatus.LOST, f"{error}\n\nthe worker's process died while it ran", now)
        if report.broken:
            why = f"{report.result.error}\n\nthe worker broke: {last_line(report.result.error)}"
            return self._lose(job, report.result.status, why, now)
        self.job, self._answer, self._held = None, None, report.held
        if report.result.status is SegmentStatus.OUT_OF_MEMORY:
            self.replace(now)  # what an allocator could not give back goes with the process
        return report.result

    def _lose(self, job: Job, status: SegmentStatus, why: str, now: float) -> SegmentResult:
        """Replace a worker that is of no more use, and say what became of its segment."""
        assert self.place is not None  # it had a segment
        name = self.place.name
        self.replace(now)
        return replace(job.ended(status, f"{why} (process {name}); another one takes its place"), worker=name)
