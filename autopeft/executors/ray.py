"""Runs segments on Ray: a local one that is started on demand, one in use already, or a cluster.

Each worker is an actor that is made once and keeps its loaded base models between segments. Segments go in and
results come out; checkpoints travel with them as bytes, so no file system is shared. Data travels once, through the
object store: workers on one node read the same (read-only) memory. Which worker takes a segment is decided by
`autopeft.executors.placement`; what becomes of one worker is in `autopeft.executors.remote`.
"""

import itertools
import logging
import os
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from autopeft.errors import ExecutorError
from autopeft.executors.actor import Place, SegmentActor
from autopeft.executors.base import SegmentWorker
from autopeft.executors.folder_transfer import Lacking
from autopeft.executors.placement import OVERHEAD_BYTES, Placement, plan, room
from autopeft.executors.ray_cluster import RayCluster, reason_of
from autopeft.executors.remote import Job, RemoteWorker
from autopeft.executors.versions import check_versions, versions
from autopeft.spec.trial import Segment, SegmentResult, SegmentStatus
from autopeft.spec.units import format_bytes

Setup = TypeVar("Setup")

MAX_START_FAILURES = 3
"""Workers in a row that could not be made, after which the search ends; as many for each worker where they died.

While others work it goes on, and the next one is asked for after REST_SECONDS.
"""
REST_SECONDS = 60.0
HANG_SECONDS = 300.0
"""How far beyond its deadline a segment is waited for, and the least that one without a deadline may take."""
SOON_SECONDS = 60.0
"""Within which a worker that was asked for is counted on; after that, others take what waits."""
WAIT_SECONDS = 10.0
"""After which the user is told that workers are waited for."""
POLL_SECONDS = 0.1

log = logging.getLogger("autopeft")


class RayExecutor:
    """Runs segments in `n_workers` processes that Ray places, one worker in each.

    A worker that dies or hangs is replaced by a new one, and its segment comes back as lost; one that runs out of
    memory is replaced too. A segment whose memory fits no worker now waits here until there is room, and one that fits
    none at all comes back at once. Workers that the cluster has no room for yet stay asked for, so that it can grow.

    Args:
        cluster: Where the workers run; closing the executor leaves it open.
        make_worker: An importable function, called with `setup` in every worker, once.
        setup: A value; its arrays are shared by the workers of a node, read-only.
        should_stop: Asked while waiting; true ends what runs with checkpoints.
        hang_seconds: How far beyond its deadline a segment is waited for, and the least that any may take.
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
        self.n_workers = cluster.n_workers
        self._cluster = cluster
        self._should_stop = should_stop
        self._hang_seconds = hang_seconds
        actor = ray.remote(concurrency_groups={"control": 1})(SegmentActor)
        placement = cluster.placement
        self._left_out: set[str] = set()
        self._began = self._last_seen = self.now()
        # Workers beyond what the cluster has room for are not counted on until they come up.
        n_soon = cluster.n_ready
        with cluster.reachable():
            recipe = ray.put((make_worker, setup, os.getcwd()))
            self._workers = [
                RemoteWorker(
                    lambda: actor.options(**placement, **_elsewhere(self._left_out)).remote(recipe),
                    lambda: cluster.folders,
                    self._began - (0.0 if i < n_soon else SOON_SECONDS),
                )
                for i in range(self.n_workers)
            ]
        self._has_met = False
        self._waiting: list[Job] = []
        self._reserved: frozenset[str] = frozenset()
        self._numbers = itertools.count()
        self._n_owed = 0
        self._n_broken = self._n_died = 0
        self._n_missed = 0

    @property
    def pids(self) -> tuple[int | None, ...]:
        """Return the process id of each worker that has been seen to have started."""
        return tuple(None if worker.place is None else worker.place.pid for worker in self._workers)

    def free(self) -> int:
        """Return how many more segments can be submitted now."""
        idle = sum(worker.idle and worker.seat().device not in self._reserved for worker in self._workers)
        n_soon = sum(self._comes_soon(worker) for worker in self._workers)
        # What still waits has found no idle worker and counts on those that start; so much may wait for memory.
        free = idle + max(0, n_soon - len(self._waiting))
        n_in_hand = len(self._waiting) + self._n_running()
        # Where no worker is in sight, one segment is taken all the same: it waits for the first that comes.
        least = 1 if self._workers and not n_in_hand else 0
        return max(least, min(free, 2 * self.n_workers - n_in_hand))

    def submit(self, segment: Segment) -> None:
        """Send a segment out, or keep it until a worker has room for it. Raises RuntimeError where none is free."""
        if self._n_owed:
            self._n_owed -= 1
        elif not self.free():
            raise RuntimeError(f"submit needs a free worker, but all {self.n_workers} run a segment or wait for memory")
        self._waiting.append(Job(segment=segment, number=next(self._numbers), submitted=self.now()))
        with self._cluster.reachable():
            self._send_out()

    def wait(self) -> list[SegmentResult]:
        """Block until a segment has ended, however, and return the results of all that have.

        Raises:
            ExecutorError: Workers cannot be started, have other versions than this process, or Ray is out of reach.
        """
        with self._cluster.reachable():
            while self._waiting or self._n_running():
                self._cluster.check_head()
                answered = self._answered()
                self._greet(answered)
                if results := [*self._ended(answered), *self._hopeless()]:
                    self._n_owed = len(results)
                    self._send_out()
                    return results
                self._send_out()
                self._answered(timeout=POLL_SECONDS)
        return []

    def now(self) -> float:
        """Return monotonic seconds."""
        return time.monotonic()

    def close(self) -> None:
        """End the workers at once, with what they run."""
        workers, self._workers, self._waiting = self._workers, [], []
        if self._cluster.is_away:
            return  # they end with this process, and with Ray
        for worker in workers:
            with suppress(RayError):
                worker.kill()

    # Segments -------------------------------------------------------------------------------------------------

    def _n_running(self) -> int:
        return sum(worker.job is not None for worker in self._workers)

    def _answered(self, timeout: float = 0.0) -> set[Any]:
        """Return which workers' answers are there: all of them, or after a while the first that comes."""
        pending = [worker.pending for worker in self._workers if worker.pending is not None]
        if not pending:
            time.sleep(timeout)
            return set()
        ready, _ = ray.wait(pending, num_returns=1 if timeout else len(pending), timeout=timeout)
        return set(ready)

    def _ended(self, answered: set[Any]) -> list[SegmentResult]:
        """Return the results of what has ended on workers; where a stop is asked for, pass that on."""
        if self._should_stop():
            for worker in self._workers:
                worker.stop()
        now = self.now()
        found = [
            worker.end(answered=worker.pending in answered, now=now, patience_seconds=self._hang_seconds)
            for worker in self._workers
        ]
        return [result for result in found if result is not None]

    def _hopeless(self) -> list[SegmentResult]:
        """Take what need not wait any longer out of the queue, and say why."""
        if not self._waiting:
            return []
        now = self.now()
        # Only once all that are counted on have started, and some have, is it known what the largest device is.
        known = self._started() and not any(map(self._comes_soon, self._workers))
        nowhere = set(self._plan().nowhere) if known else set()
        results, kept = [], []
        for position, job in enumerate(self._waiting):
            deadline = job.segment.deadline_seconds
            if self._should_stop() or (deadline is not None and now - job.submitted > deadline):
                results.append(job.ended(SegmentStatus.INTERRUPTED))
            elif position in nowhere:
                results.append(job.ended(SegmentStatus.OUT_OF_MEMORY, self._too_large(job)))
            else:
                kept.append(job)
        self._waiting = kept
        return results

    def _send_out(self) -> None:
        """Start what has a place now."""
        if self._should_stop():
            return
        now, plans, started = self.now(), self._plan(), self._started()
        for position, seat in plans.starts.items():
            started[seat].run(self._waiting[position], now)
        for seat in plans.replace:
            started[seat].replace(now)
        self._waiting = [job for position, job in enumerate(self._waiting) if position not in plans.starts]
        self._reserved = plans.reserved

    def _plan(self) -> Placement:
        return plan([job.need for job in self._waiting], [worker.seat() for worker in self._started()])

    def _too_large(self, job: Job) -> str:
        seats = [worker.seat() for worker in self._started()]
        rooms = room(seats)
        largest = seats[rooms.index(max(rooms))]
        sharing = sum(seat.device == largest.device for seat in seats)
        return (
            f"the design fits no device of the cluster: needs {format_bytes(job.need.n_bytes)}, largest has "
            f"{format_bytes(largest.capacity_bytes or 0)}, {format_bytes(OVERHEAD_BYTES)} of it for each of the "
            f"{sharing} worker(s) there"
        )

    # Workers --------------------------------------------------------------------------------------------------

    def _started(self) -> list[RemoteWorker]:
        return [worker for worker in self._workers if worker.place is not None]

    def _comes_soon(self, worker: RemoteWorker) -> bool:
        return not worker.rests and worker.place is None and self.now() - worker.since < SOON_SECONDS

    def _greet(self, answered: set[Any]) -> None:
        """Take in the workers that have started, and replace those that could not.

        Raises:
            ExecutorError: None starts, or one of the first has other versions.
        """
        first = not self._has_met
        for worker in self._workers:
            if worker.rests and self.now() - worker.since > REST_SECONDS:
                worker.replace(self.now() - SOON_SECONDS)  # it may fail again, and is not counted on
            if worker.place is not None or worker.pending not in answered:
                continue
            try:
                answer = worker.meet()
                if isinstance(answer, Lacking):
                    self._cluster.send(answer)
                    worker.ask()
                    continue
                self._n_broken = self._n_died = 0
                if self._accepts(answer, first=first):
                    self._has_met = True
                else:
                    worker.replace(self.now() - SOON_SECONDS)  # it is there when another node is, and not before
            except RayError as error:
                self._replace_failed(worker, error)
        if self._started():
            self._last_seen = self.now()
            if len(self._started()) == self.n_workers:
                self._cluster.stop_sending()
        elif self.now() - self._last_seen > self._cluster.start_seconds:
            raise ExecutorError(self._cluster.never_started())
        self._tell_what_is_missing()

    def _accepts(self, place: Place, *, first: bool) -> bool:
        """Return whether a worker has the versions of this process; where others run, its node is left out.

        Raises:
            ExecutorError: One of the first has others.
        """
        try:
            check_versions(versions(), place.versions, node=place.describe_node())
        except ExecutorError as error:
            if first:
                raise
            if place.node not in self._left_out:
                log.warning("%s; no worker runs there until it joins again", error)
            self._left_out.add(place.node)
            return False
        return True

    def _replace_failed(self, worker: RemoteWorker, error: RayError) -> None:
        """Put another worker in the place of one that did not start, now or, while others work, after some rest.

        Raises:
            ExecutorError: Too many in a row did not, and none works.
        """
        broke = isinstance(error, RayTaskError)
        self._n_broken += broke
        self._n_died += not broke
        # A node that leaves takes all that start there with it, so that those that died are given more.
        if self._n_broken < MAX_START_FAILURES and self._n_died < MAX_START_FAILURES * self.n_workers:
            worker.replace(self.now())
            return
        why = f"{self._n_broken if broke else self._n_died} in a row did not, the last one with: {reason_of(error)}"
        if not self._started():
            raise ExecutorError(f"workers must start, but {why}") from error
        log.warning("workers must start, but %s; the next one is asked for in %.0f s", why, REST_SECONDS)
        worker.rest(self.now())

    def _tell_what_is_missing(self) -> None:
        """Say how many workers are waited for, where it takes long, and when they have come."""
        missing = [w for w in self._workers if w.place is None and self.now() - w.since > WAIT_SECONDS]
        if self.now() - self._began < WAIT_SECONDS or len(missing) == self._n_missed:
            return
        n_here = len(self._started())
        if missing:
            log.warning(
                "waiting for %d more worker%s with %s; the search runs on %d",
                len(missing),
                "" if len(missing) == 1 else "s",
                self._cluster.share.describe(),
                n_here,
            )
        elif self._n_missed:
            log.warning("all %d workers are there", n_here)
        self._n_missed = len(missing)


def _elsewhere(left_out: Collection[str]) -> dict[str, Any]:
    """Return the options of an actor that keep it off some nodes."""
    return {"label_selector": {"ray.io/node-id": f"!in({','.join(sorted(left_out))})"}} if left_out else {}
