"""The runner: keeps the workers busy, writes down what comes back, and does what the scheduler says.

It alone touches the world: the store, the folder, the clock and the executor. It is handed its cost model and its
executor, and knows neither models nor training, nor which process it trains in.
"""

import time
from collections.abc import Callable, Sequence

from autopeft.errors import ExecutorError, SearchError
from autopeft.executors.base import Executor
from autopeft.searching.clock import Clock, next_results
from autopeft.searching.final_check import score_on_test
from autopeft.searching.halving import Halving
from autopeft.searching.plan import CostModel, SearchPlan
from autopeft.searching.proposals import Proposals
from autopeft.searching.samplers.base import Sampler
from autopeft.searching.scheduler import Scheduler
from autopeft.searching.segments import Segments
from autopeft.searching.starter import Starter
from autopeft.searching.table import TrialTable
from autopeft.searching.trials import Trials
from autopeft.spec.event import Callback, Event
from autopeft.spec.trial import SegmentResult, TrialRecord
from autopeft.study.folder import StudyFolder
from autopeft.study.segment_files import copy_checkpoints, write_results
from autopeft.study.store import StudyStore
from autopeft.study.test_scores import read_scores
from autopeft.study.turn import DecisionLostError

BATCH_SECONDS = 0.25
"""How long designs are proposed before those that have been are sent out, where many workers wait."""
_WAIT_SECONDS = 2.0
"""How long a driver with nothing to do waits before it looks again whether another one has died."""


class Runner:
    """One run of a search over a record that may hold earlier ones.

    Args:
        sampler: Proposes designs; it has been taught what the record holds.
        scheduler: Decides what is trained, and for how long; asynchronous successive halving by default.
        should_stop: True once the search should end early; asked between results.
        on_event: Called after each change has been written.
    """

    def __init__(
        self,
        plan: SearchPlan,
        *,
        store: StudyStore,
        folder: StudyFolder,
        sampler: Sampler,
        cost_model: CostModel,
        executor: Executor,
        scheduler: Scheduler | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        on_event: Callback = lambda _: None,
    ) -> None:
        self._plan = plan
        self._store = store
        self._folder = folder
        self._executor = executor
        self._should_stop = should_stop
        self._on_event = on_event
        self._table = table = TrialTable(
            plan,
            store.records(),
            first_here=_first_trial_on(plan.device, store),
            driver=store.driver,
            checked=read_scores(store),
        )
        self._scheduler = scheduler or Halving(plan)
        self._clock = Clock(plan, executor, table, table.pace)
        self._segments = Segments(plan, driver=store.driver, folder=folder, table=table, clock=self._clock)
        self._proposals = Proposals(plan.limits, plan.n_trials, cost_model, sampler, store, table)
        self._trials = Trials(
            plan,
            store=store,
            folder=folder,
            sampler=sampler,
            table=table,
            scheduler=self._scheduler,
            should_stop=should_stop,
        )
        self._starter = Starter(
            plan,
            store=store,
            cost_model=cost_model,
            table=table,
            scheduler=self._scheduler,
            proposals=self._proposals,
            segments=self._segments,
            trials=self._trials,
            n_workers=executor.n_workers,
        )

    def run(self) -> None:
        """Search until every design has been tried, the time is up, or a stop is asked for.

        Raises:
            SearchError: Several trials in a row failed; their errors are in the logs.
            BudgetError: The sampler's proposals are refused without end.
            ExecutorError: Workers cannot be started.
        """
        self._trials.adopt()
        running = self._table.running(self._store.driver)
        results: Sequence[SegmentResult] = ()
        try:
            while True:
                self._go_on(results)
                results = ()
                if not running and (self._starter.refusal or self._ending() or self._executor.free() > 0):
                    if self._ending() or not self._store.may_inherit():
                        break
                    time.sleep(_WAIT_SECONDS)
                    continue
                results = next_results(self._executor)
        except (SearchError, ExecutorError):
            self._trials.interrupt(list(running), "the search ended with an error")
            self._tell()
            raise
        if self._starter.refusal is not None:  # what other workers trained has come to its end first
            raise self._starter.refusal

    @property
    def time_is_up(self) -> bool:
        """Return whether the time limit kept this call from training what it could have trained."""
        if self._clock.training_seconds_left() is None or self._should_stop():
            return False
        waits = self._scheduler.has_work(self._table)
        ended = self._clock.training_seconds_left() == 0 and (waits or bool(self._table.interrupted()))
        return self._starter.lacks_time or ended

    def check_front(self) -> None:
        """Score the front on the test split: each design once, never again, and never to choose by.

        Designs scored by an earlier run keep their scores; what the time does not allow waits for the next call.
        """
        if not self._plan.test:
            return
        done = read_scores(self._store)
        # Another driver scores what it has trained.
        waiting = [r for r in self._table.compared() if r.number not in done and self._segments.is_here(r)]
        score_on_test(
            sorted(waiting, key=lambda record: bool(record.baseline)),  # where time is short, designs come first
            executor=self._executor,
            store=self._store,
            folder=self._folder,
            make_segment=self._segments.test_of,
            goes_on=lambda record: not self._should_stop() and self._segments.has_time_to_check(record),
        )

    def _go_on(self, results: Sequence[SegmentResult]) -> None:
        """Take in what has come back, and give every free worker a trial.

        What results brought is made durable first. Then what it means and who comes next is written in one append, and
        only then workers and people hear of it.
        """
        chosen = self._executor.now()
        for result in results:
            self._clock.came_back(result)
        write_results(self._folder, results, n_full_examples=self._plan.n_full_examples)
        with self._store.together():
            for result in results:
                self._trials.take_result(result)
            self._trials.check_failures(n_workers=self._executor.n_workers)
            batch, more = self._next_batch()
        while True:
            # What takes longest decides when all are done, and workers that must first start up take what comes last.
            self._send_out(sorted(batch, key=self._segments.seconds_left_of, reverse=True), chosen)
            self._tell()
            if not more:
                break
            chosen = self._executor.now()
            batch, more = self._next_batch()
        if self._ending():
            self._trials.interrupt(self._trials.ready, "the search ended")
            self._trials.ready.clear()
            self._tell()

    def _next_batch(self) -> tuple[list[TrialRecord], bool]:
        """Return trials for workers that wait, and whether more of them wait than the time for one batch allowed."""
        batch: list[TrialRecord] = []
        n_free = 0 if self._ending() else self._executor.free()
        until, more = self._executor.now() + BATCH_SECONDS, n_free > 0
        with self._store.turn(), self._store.together():
            if more:
                self._trials.take_in()
            while more and len(batch) < n_free and (not batch or self._executor.now() < until):
                try:
                    record = self._starter.next()
                except DecisionLostError:
                    break  # it is decided again in another turn, after a look at what others have done
                batch += [] if record is None else [self._table.put(record)]
                more = record is not None
        return batch, more and len(batch) < n_free

    def _send_out(self, records: Sequence[TrialRecord], chosen: float) -> None:
        """Give trials to the executor; one that continues another gets a copy of its checkpoint first.

        Args:
            records: The trials.
            chosen: When the choice of them began, on the executor's clock.
        """
        segments = []
        for record in records:
            saved, segment = self._segments.next_of(record)
            if saved != record:  # its last checkpoint is damaged: the record says what it goes back to
                self._store.update(self._table.put(saved))
            segments.append(segment)
        copy_checkpoints(self._folder, segments)
        for segment in segments:
            self._executor.submit(segment)
            self._clock.sent(segment.trial, chosen)

    def _ending(self) -> bool:
        return self._should_stop() or self._clock.training_seconds_left() == 0

    def _tell(self) -> None:
        """Say what has happened, now that it is written."""
        for kind, record, worker in self._trials.news():
            progress = self._table.progress(
                elapsed_seconds=self._clock.elapsed_seconds(),
                n_refused=sum(self._proposals.n_refused.values()),
                n_workers=self._executor.n_workers,
            )
            metric = self._plan.metric.name
            self._on_event(Event(kind=kind, trial=record, progress=progress, metric=metric, worker=worker))


def _first_trial_on(device: str, store: StudyStore) -> int:
    """Return the number of the first trial that the record has, or will have, of the present device."""
    known = store.part("device")
    if known is None or known["name"] != device:
        # A record that names no device was begun before it could, or is empty.
        known = {"name": device, "first_trial": 0 if known is None else len(store.records())}
        store.set_part("device", known)
    return int(known["first_trial"])
