"""Asynchronous successive halving: what is begun goes on first, then baselines, promotions and new designs.

Which trial passes a rung is decided in `autopeft.searching.rungs`.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterator
from heapq import heappop, heappush

from autopeft.searching.plan import SearchPlan
from autopeft.searching.rungs import Rung, RungEntry
from autopeft.searching.scheduler import Job, Resources, Resume, Start
from autopeft.searching.table import TrialTable
from autopeft.spec.trial import Outcome, TrialRecord, Verdict


class Halving:
    """The scheduler of `early_stopping: auto`; see `autopeft.searching.scheduler.Scheduler`.

    A free worker is given, in this order: a trial that was interrupted and that this driver can train on; a baseline;
    a stopped trial that later results have made one of the best at its rung, the last rung first; a new design; and a
    trial that another driver began and did not end, which without its checkpoints starts afresh here.

    Source: asynchronous successive halving, Li et al. 2020, algorithm 2; the order beside promotions is ours.
    """

    def __init__(self, plan: SearchPlan) -> None:
        """Prepare for the trials of a plan."""
        rules = plan.halving
        self._plan = plan
        self._rungs = () if rules is None else tuple(Rung(rules) for _ in rules.rungs)
        self._stopped: dict[int, TrialRecord] = {}
        self._interrupted = _Interrupted(plan)
        self._fresh: list[TrialRecord] = []
        self._n_read = 0

    def next_job(self, table: TrialTable, resources: Resources) -> Job | None:
        """Return what a free worker does next; see `Scheduler`."""
        self._read(table)
        for record in self._fresh:
            self._interrupted.put(record, resources)
        self._fresh.clear()
        if interrupted := self._next_interrupted(table, resources, here=True):
            return Resume(record=interrupted)
        if resources.baselines:
            return Start(baseline=resources.baselines[0])
        if stopped := self._next_promotable(resources):
            return Resume(record=stopped)
        if self._may_start(table) and resources.can_propose:
            return Start()
        if elsewhere := self._next_interrupted(table, resources, here=False):
            return Resume(record=elsewhere)
        return None

    def put_back(self, job: Job) -> None:
        """Offer an interrupted trial again; the rungs offer stopped ones by themselves."""
        if isinstance(job, Resume) and job.record.outcome is Outcome.INTERRUPTED:
            self._interrupted.forget(job.record)
            self._fresh.append(job.record)

    def on_result(self, table: TrialTable, record: TrialRecord) -> Verdict:
        """Return what the last rung of a trial decides; see `Scheduler`."""
        self._read(table)
        return self._rungs[len(record.rungs) - 1].verdict(table.root(record))

    def has_work(self, table: TrialTable) -> bool:
        """Return whether a new design may start, or a stopped trial may go on."""
        self._read(table)
        return self._may_start(table) or any(rung.promotable() for rung in self._rungs)

    def _may_start(self, table: TrialTable) -> bool:
        return table.n_started() < self._plan.n_trials

    def _read(self, table: TrialTable) -> None:
        """Take in what has changed since the last look.

        What was interrupted before the first look, or at another driver, can go on here. What is interrupted here waits
        for the next call: time is short, or somebody asked for the end.
        """
        is_first, changes, self._n_read = not self._n_read, table.changes[self._n_read :], len(table.changes)
        for record in changes:
            if table.is_interrupted(record) and (is_first or record.driver != table.driver):
                self._fresh.append(table.records[record.number])  # as it stands by now
            if not record.baseline:
                self._put_rungs(table, record)

    def _put_rungs(self, table: TrialTable, record: TrialRecord) -> None:
        root, metric, cost = table.root(record), self._plan.metric, self._plan.cost
        before = self._stopped.get(root)
        if before is not None and before.number < record.number:  # this one goes on with it
            del self._stopped[root]
            for rung in self._rungs:
                rung.leave(root)
        for rung, score in zip(self._rungs, record.rungs, strict=False):
            rung.put(RungEntry.of(record, score, root=root, metric=metric, cost=cost))
        waits = record.outcome is Outcome.STOPPED and not table.is_continued(record)
        if waits and 0 < len(record.rungs) <= len(self._rungs):
            self._stopped[root] = record
            self._rungs[len(record.rungs) - 1].stop(root)

    def _promotable(self) -> Iterator[list[TrialRecord]]:
        """Yield the stopped trials that may go on, those of the last rung first; of one rung, as they were stopped."""
        for rung in reversed(self._rungs):
            if found := rung.promotable():
                yield [self._stopped[root] for root in found]

    def _next_promotable(self, resources: Resources) -> TrialRecord | None:
        for stopped in self._promotable():
            here = [record for record in stopped if resources.is_here(record) and resources.has_time(record)]
            if here:
                # What takes longest decides when all workers are done.
                return max(here, key=resources.training_seconds) if resources.n_workers > 1 else here[0]
        return None

    def _next_interrupted(self, table: TrialTable, resources: Resources, *, here: bool) -> TrialRecord | None:
        """Return the next trial that was cut short; those without time, and those that begin above `n_trials`, wait."""
        while (record := self._interrupted.take(table, resources, here=here)) is not None:
            begins = not record.baseline and not record.has_started
            if resources.has_time(record) and not (begins and not self._may_start(table)):
                return record
        return None


class _Interrupted:
    """Trials that were cut short, the next one first: in O(log n), however many wait.

    Where several workers share the work, that is the trial with most training before it; one worker takes them in the
    order in which they came. How long a FLOP takes changes while the search learns, and differs between quantizations
    of the base: within one of them the order of the trials stays, and only the first of each are compared.
    """

    def __init__(self, plan: SearchPlan) -> None:
        self._plan = plan
        self._heaps: defaultdict[tuple[bool, str], list[tuple[float, int, TrialRecord]]] = defaultdict(list)
        self._seen: set[int] = set()
        self._places = itertools.count()

    def put(self, record: TrialRecord, resources: Resources) -> None:
        """Take in a trial, once."""
        if record.number in self._seen:
            return
        order = -self._flops_left(record) if resources.n_workers > 1 else 0.0
        is_here = not record.has_started or resources.is_here(record)  # one without a step needs no checkpoint
        heap = self._heaps[is_here, record.design.quantization]
        heappush(heap, (order, next(self._places), record))  # the second tells all apart
        self._seen.add(record.number)

    def forget(self, record: TrialRecord) -> None:
        """Let a trial that was taken wait again once it is put."""
        self._seen.discard(record.number)

    def take(self, table: TrialTable, resources: Resources, *, here: bool) -> TrialRecord | None:
        """Return the next trial, which waits no more; None where there is none.

        Args:
            table: Of the trials: another driver may have gone on with one.
            resources: Say how long each takes.
            here: Of those that can go on with what this driver has in its folder, or of the others.
        """
        heaps = [heap for (is_here, _), heap in self._heaps.items() if is_here == here]
        for heap in heaps:
            while heap and not table.is_interrupted(heap[0][2]):
                heappop(heap)
        waiting = [heap for heap in heaps if heap]

        def order(heap: list[tuple[float, int, TrialRecord]]) -> tuple[float, int]:
            _, place, record = heap[0]
            return (-resources.training_seconds(record) if resources.n_workers > 1 else 0.0), place

        return heappop(min(waiting, key=order))[2] if waiting else None

    def _flops_left(self, record: TrialRecord) -> float:
        n_left = max(0, self._plan.next_stop(record) - record.examples)
        return record.estimate.train_flops * n_left / self._plan.n_full_examples
