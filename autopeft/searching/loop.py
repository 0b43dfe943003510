"""The search loop: keeps the workers busy, judges what comes back, and writes everything down.

The loop is handed its cost model and its executor; it knows neither models nor training. It does not know
which process it trains in, nor how long a segment takes.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from math import ceil, isfinite

from optuna.trial import TrialState

from autopeft.errors import BudgetError, ExecutorError, SearchError
from autopeft.executors.base import Executor
from autopeft.searching.final_check import score_on_test
from autopeft.searching.folder import StudyFolder
from autopeft.searching.ledger import Ledger
from autopeft.searching.plan import Baseline, CostModel, SearchPlan
from autopeft.searching.proposals import Proposals
from autopeft.searching.sampler import Proposal, Sampler
from autopeft.searching.storage import STATES, StudyStore
from autopeft.spec.cost import Estimate, Measured, excess
from autopeft.spec.design import Design
from autopeft.spec.event import Callback, Event, EventKind, Progress
from autopeft.spec.trial import Outcome, RungScore, Segment, SegmentResult, SegmentStatus, TrialRecord

MAX_FAILURES_IN_A_ROW = 5
"""Failed trials for each worker, with none that succeeded between them, after which the fault is not the designs'."""
MAX_RETRIES = 2
"""How often a trial is run again after its worker was lost; then the design itself is suspect."""
BATCH_SECONDS = 0.25
"""How long designs are proposed before those that have been are sent out, where many workers wait."""
N_WRITERS = 16
"""Files that are written at the same time: each waits for the disk, and disks make many durable at once."""
_LAST_FILE = "autopeft.json"
"""Of an adapter: a folder that has it is whole."""
_WAIT_SECONDS = 2.0
"""How long a driver with nothing to do waits before it looks again whether another one has died."""


class SearchLoop:
    """One run of a search over a record that may hold earlier ones.

    Args:
        sampler: Proposes designs; it has been taught what the record holds.
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
        should_stop: Callable[[], bool] = lambda: False,
        on_event: Callback = lambda _: None,
    ) -> None:
        self._plan = plan
        self._store = store
        self._folder = folder
        self._sampler = sampler
        self._cost_model = cost_model
        self._executor = executor
        self._should_stop = should_stop
        self._on_event = on_event
        self._ledger = Ledger(plan, store.records(), first_here=_first_trial_on(plan.device, store))
        self._tickets: dict[int, int] = {}
        self._interrupted: list[TrialRecord] = []
        self._ready: list[TrialRecord] = []
        self._events: list[tuple[EventKind, TrialRecord]] = []
        self._refusal: BudgetError | None = None
        self._n_failures = 0
        self._last_failure = ""
        self._start = executor.now()
        self._proposals = Proposals(plan.limits, plan.n_trials, cost_model, sampler, store, self._ledger)

    def run(self) -> None:
        """Search until every design has been tried, the time is up, or a stop is asked for.

        Raises:
            SearchError: Several trials in a row failed; their errors are in the logs.
            BudgetError: The sampler's proposals are refused without end.
            ExecutorError: Workers cannot be started.
        """
        self._adopt()
        results: Sequence[SegmentResult] = ()
        try:
            while True:
                self._go_on(results)
                results = ()
                if not self._running_here() and (self._refusal or self._ending() or self._executor.free() > 0):
                    if self._ending() or not self._store.may_inherit():
                        break
                    time.sleep(_WAIT_SECONDS)
                    continue
                results = self._executor.wait()
        except (SearchError, ExecutorError):
            self._interrupt(self._running_here(), "the search ended with an error")
            raise
        if self._refusal is not None:  # what other workers trained has come to its end first
            raise self._refusal

    def check_front(self) -> None:
        """Score the front on the test split: each design once, never again, and never to choose by.

        Designs scored by an earlier run keep their scores; what the time does not allow waits for the next call.
        """
        done = {number for part in self._store.parts("tests") for number in part}
        waiting = [r for r in self._ledger.compared() if str(r.number) not in done] if self._plan.test else []
        score_on_test(
            [r for r in waiting if self._is_here(r)],  # another driver scores what it has trained
            executor=self._executor,
            store=self._store,
            folder=self._folder,
            make_segment=self._test_segment,
            goes_on=lambda: not self._should_stop() and not self._late(),
        )

    # What is next ---------------------------------------------------------------------------------------------

    def _adopt(self) -> None:
        """Take over what an earlier run left: end its running trials, and queue what can go on."""
        with self._store.turn():
            for record in self._store.recover():
                self._finish(replace(record, outcome=Outcome.INTERRUPTED, reason="the search was killed"), quiet=True)
            for record in self._store.records():
                self._ledger.put(record)
        self._interrupted = self._ledger.interrupted()

    def _take_in(self) -> None:
        """Take over what other drivers of the study have done, and what those have left that are gone."""
        if not self._store.driver:
            return
        changed = list(self._store.changes())
        for record in changed:
            self._ledger.put(record)
        for record in self._store.abandoned():
            record = replace(record, outcome=Outcome.INTERRUPTED, reason=f"{record.driver}, which trained it, is gone")
            self._finish(record, quiet=True)
            changed.append(record)
        self._store.teach(self._sampler)
        known = {record.number for record in self._interrupted}
        waiting = {record.number for record in self._ledger.interrupted()} if changed else known
        cut_short = [record for record in changed if record.number not in known]
        self._interrupted = [record for record in (*self._interrupted, *cut_short) if record.number in waiting]

    def _running_here(self) -> list[TrialRecord]:
        return [record for record in self._ledger.running() if record.driver == self._store.driver]

    def _is_here(self, record: TrialRecord) -> bool:
        """Return whether a trial can go on, or be scored, with what this driver has in its folder."""
        return record.driver == self._store.driver or bool(self._folder.checkpoints.files(record.number))

    def _go_on(self, results: Sequence[SegmentResult]) -> None:
        """Take in what has come back, and give every free worker a trial.

        What results brought is made durable first. Then what it means and who comes next is written in one append, and
        only then workers and people hear of it.
        """
        _at_once([job for result in results for job in self._files(result)])
        _at_once([job for result in results for job in self._files_that_come_last(result)])
        with self._store.together():
            for result in results:
                self._handle(result)
            self._check_failures()
            batch, more = self._next_batch()
        while True:
            # What takes longest decides when all are done, and workers that must first start up take what comes last.
            self._send_out(sorted(batch, key=self._seconds_left_of, reverse=True))
            self._tell()
            if not more:
                break
            batch, more = self._next_batch()
        if self._ending():
            self._interrupt(self._ready, "the search ended")
            self._ready.clear()

    def _next_batch(self) -> tuple[list[TrialRecord], bool]:
        """Return trials for workers that wait, and whether more of them wait than the time for one batch allowed.

        Where no more can be proposed, it is noted why.
        """
        batch: list[TrialRecord] = []
        n_free = 0 if self._ending() else self._executor.free()
        until, more = self._executor.now() + BATCH_SECONDS, n_free > 0
        try:
            with self._store.turn(), self._store.together():
                if more:
                    self._take_in()
                while more and len(batch) < n_free and (not batch or self._executor.now() < until):
                    record = self._find_next()
                    batch += [] if record is None else [self._ledger.put(record)]
                    more = record is not None
        except BudgetError as error:
            self._refusal, more = error, False
        return batch, more and len(batch) < n_free

    def _send_out(self, records: Sequence[TrialRecord]) -> None:
        """Give trials to the executor; one that continues another gets a copy of its checkpoint first."""
        segments = [self._segment(record) for record in records]
        checkpoints = self._folder.checkpoints
        copies = [(s.trial, s.start, s.checkpoint) for s in segments if s.checkpoint and not checkpoints.files(s.trial)]
        _at_once([partial(checkpoints.save, *copy) for copy in copies])
        for segment in segments:
            self._executor.submit(segment)

    def _longest(self, records: list[TrialRecord]) -> TrialRecord:
        """Return what to go on with: where several workers share the work, the trial that has most before it."""
        return records[0] if self._executor.n_workers == 1 else max(records, key=self._seconds_left_of)

    def _seconds_left_of(self, record: TrialRecord) -> float:
        """Predict the training that a trial has before it until its next score; 0 for all before anything is timed."""
        full = self._ledger.calibration.train_seconds(record.estimate, record.design.quantization) or 0.0
        return full * max(0, self._stop(record) - record.examples) / self._plan.n_full_examples

    def _find_next(self) -> TrialRecord | None:
        """Return the trial to train next, as it stands in the record; None where there is nothing to start."""
        if self._ready:
            return self._ready.pop(0)
        if self._refusal is not None:
            return None
        if here := [record for record in self._interrupted if self._is_here(record)]:
            return self._go_on_with(here)
        for baseline in self._plan.baselines:
            if not self._ledger.has_tried(baseline):
                return self._start_baseline(baseline)
        if stopped := [record for record in self._ledger.promotable() if self._is_here(record)]:
            return self._continue(self._longest(stopped))
        if self._ledger.n_started() < self._plan.n_trials:
            accepted = self._proposals.next(self._on_refused)
            if accepted is not None:
                return self._start_trial(*accepted)
        # What another driver began and did not end comes last: without its checkpoints it starts afresh here.
        return self._go_on_with(self._interrupted) if self._interrupted else None

    def _go_on_with(self, interrupted: list[TrialRecord]) -> TrialRecord:
        record = self._longest(interrupted)
        self._interrupted.remove(record)
        return self._continue(record)

    def _start_trial(self, proposal: Proposal, estimate: Estimate) -> TrialRecord:
        record = self._store.add(
            self._new_record(proposal.draw.design, proposal.draw.learning_rates, estimate),
            proposal.params,
            proposal.distributions,
        )
        self._tickets[record.number] = proposal.ticket
        return self._started(record)

    def _start_baseline(self, baseline: Baseline) -> TrialRecord | None:
        estimate = self._cost_model(baseline.design)
        record = replace(self._new_record(baseline.design, baseline.learning_rates, estimate), baseline=baseline.name)
        reason = baseline.refusal(estimate, record.excess, self._plan.memory_bytes)
        if baseline.name == "full":
            record = replace(record, excess={})  # no budget applies to it
        if not reason:
            return self._started(self._store.add(record))
        self._ledger.put(self._store.add(replace(record, outcome=Outcome.INFEASIBLE, reason=reason)))
        return self._find_next()

    def _new_record(self, design: Design, rates: Mapping[str, float], estimate: Estimate) -> TrialRecord:
        return TrialRecord(
            number=-1,
            design=design,
            learning_rates=rates,
            seed=self._plan.seed * 100_003 + len(self._ledger.records),
            outcome=Outcome.RUNNING,
            estimate=estimate,
            excess=excess(self._plan.limits, estimate),
            first_event=self._ledger.next_event(),
        )

    def _continue(self, record: TrialRecord) -> TrialRecord:
        """Add a trial that goes on from another's checkpoint; without a checkpoint it starts afresh."""
        successor = replace(record, outcome=Outcome.RUNNING, continues=record.number, reason="")
        successor = replace(successor, first_event=self._ledger.next_event(), last_event=None)
        successor, _ = self._as_saved(replace(successor, number=record.number))
        return self._started(self._store.add(successor, *self._store.parameters(record.number)))

    def _started(self, record: TrialRecord) -> TrialRecord:
        self._emit(EventKind.STARTED, record)
        return record

    def _as_saved(self, record: TrialRecord) -> tuple[TrialRecord, bytes | None]:
        """Return a trial as its last whole checkpoint left it, and that; as it began, where there is none.

        A checkpoint of a trial that it continues is as good as its own.
        """
        link: TrialRecord | None = record
        saved = None
        while saved is None and link is not None:
            saved = self._folder.checkpoints.last(link.number, up_to=record.examples)
            link = None if link.continues is None else self._ledger.records[link.continues]
        if saved is None:
            return replace(record, examples=0, rungs=(), scores={}, standard_errors={}, measured=Measured()), None
        if saved.examples < record.examples:
            rungs = tuple(rung for rung in record.rungs if rung.examples <= saved.examples)
            scores = rungs[-1].scores if rungs else {}
            record = replace(record, examples=saved.examples, rungs=rungs, scores=scores, standard_errors={})
        return record, saved.content

    # What comes back ------------------------------------------------------------------------------------------

    def _segment(self, record: TrialRecord) -> Segment:
        """Return what a trial trains next, from its last whole checkpoint."""
        known = record
        record, checkpoint = self._as_saved(record)
        if record != known:
            self._store.update(self._ledger.put(record))
        return self._make_segment(record, checkpoint)

    def _test_segment(self, record: TrialRecord) -> Segment:
        """Return the final check of a trial that trained in full."""
        segment = self._make_segment(record, self._folder.checkpoints.at(record.number, record.examples))
        return replace(segment, stage="test", deadline_seconds=self._time_left(), expected_seconds=None)

    def _make_segment(self, record: TrialRecord, checkpoint: bytes | None) -> Segment:
        return Segment(
            trial=record.number,
            design=record.design,
            learning_rates=record.learning_rates,
            seed=record.seed,
            start=record.examples,
            stop=self._stop(record),
            full=self._plan.n_full_examples,
            checkpoint=checkpoint,
            deadline_seconds=self._seconds_left(),
            memory_bytes=self._memory_bytes(record),
            expected_seconds=self._expected_seconds(record),
        )

    def _memory_bytes(self, record: TrialRecord) -> int:
        # Full fine-tuning changes copies of the weights, beside those of the base.
        copies = record.estimate.base_bytes if record.baseline == "full" else 0
        return self._ledger.calibration.device_bound(record.estimate) + copies

    def _expected_seconds(self, record: TrialRecord) -> float | None:
        train, evaluation = self._seconds_left_of(record), self._ledger.evaluation_seconds()
        return train + evaluation if train and evaluation else None

    def _stop(self, record: TrialRecord) -> int:
        """Return the examples after which a trial is scored next."""
        stops = self._plan.stops(record)
        return stops[min(len(record.rungs), len(stops) - 1)]

    def _files(self, result: SegmentResult) -> list[Callable[[], object]]:
        """Return what writes the files that a segment brought, in any order."""
        jobs: list[Callable[[], object]] = []
        if result.checkpoint is not None:
            save = self._folder.checkpoints.save
            jobs.append(partial(save, result.trial, result.examples, result.checkpoint))
        if result.error:
            jobs.append(partial(self._folder.write, self._folder.log(result.trial), result.error.encode()))
        if self._is_full(result):
            files = {name: content for name, content in result.artifact.items() if name != _LAST_FILE}
            jobs += [partial(self._folder.write_adapter, result.trial, {name: files[name]}) for name in files]
            predictions = self._folder.predictions("validation", result.trial)
            jobs.append(partial(self._folder.write_json, predictions, list(result.predictions)))
        return jobs

    def _files_that_come_last(self, result: SegmentResult) -> list[Callable[[], object]]:
        """Return what writes the file that tells that an adapter's others are there."""
        if not self._is_full(result) or _LAST_FILE not in result.artifact:
            return []
        return [partial(self._folder.write_adapter, result.trial, {_LAST_FILE: result.artifact[_LAST_FILE]})]

    def _is_full(self, result: SegmentResult) -> bool:
        is_done = result.status is SegmentStatus.DONE and all(map(isfinite, result.scores.values()))
        return is_done and result.examples >= self._plan.n_full_examples

    def _handle(self, result: SegmentResult) -> None:
        record, status = self._ledger.records[result.trial], result.status
        if status is SegmentStatus.LOST:
            self._retry(record, result)
            return
        record = replace(record, examples=result.examples, measured=record.measured + result.measured)
        odd = {name: score for name, score in result.scores.items() if not isfinite(score)}
        if status is SegmentStatus.DONE and odd:
            status = SegmentStatus.DIVERGED
        match status:
            case SegmentStatus.DONE:
                self._n_failures = 0
                errors = {name: error for name, error in result.standard_errors.items() if isfinite(error)}
                self._score(replace(record, scores=dict(result.scores), standard_errors=errors))
            case SegmentStatus.INTERRUPTED:
                why = "stopped on request" if self._should_stop() else "the time limit was reached"
                self._finish(_ended(record, Outcome.INTERRUPTED, why))
            case SegmentStatus.DIVERGED:
                words = ", ".join(f"{name}={score}" for name, score in odd.items())
                why = _last_line(result.error, otherwise=f"a score was not finite: {words}")
                self._finish(_ended(record, Outcome.FAILED, why), learn=True)
            case SegmentStatus.OUT_OF_MEMORY:
                self._finish(_ended(record, Outcome.OUT_OF_MEMORY, self._failure(result)))
            case SegmentStatus.FAILED:
                self._fail(_ended(record, Outcome.FAILED, self._failure(result)))

    def _retry(self, record: TrialRecord, result: SegmentResult) -> None:
        """Run a trial again from its last checkpoint: its worker was lost."""
        n_lost, why = record.n_retries + 1, self._failure(result)
        if n_lost > MAX_RETRIES:
            reason = f"its worker was lost {n_lost} times, the last time with: {why}"
            self._fail(replace(record, outcome=Outcome.FAILED, reason=reason))
            return
        reason = f"its worker was lost, and it runs again (retry {n_lost} of {MAX_RETRIES}): {why}"
        record = self._ledger.put(replace(record, n_retries=n_lost, reason=reason))
        self._store.update(record)
        self._emit(EventKind.RETRIED, record)
        self._ready.append(record)

    def _fail(self, record: TrialRecord) -> None:
        self._finish(record)
        self._n_failures += 1
        self._last_failure = record.reason

    def _check_failures(self) -> None:
        # While one worker fails so often, each of the others may have failed as often without a fault of its own.
        if self._n_failures >= MAX_FAILURES_IN_A_ROW * self._executor.n_workers:
            raise SearchError(f"{self._n_failures} trials in a row failed, the last one with: {self._last_failure}")

    def _score(self, record: TrialRecord) -> None:
        """Record the scores of a segment that reached its end, and decide whether the trial goes on."""
        if record.examples >= self._plan.n_full_examples:
            self._finish(_ended(record, Outcome.COMPLETE))
            return
        self._take_in()
        event = self._ledger.next_event()
        rung = RungScore(rung=len(record.rungs), examples=record.examples, scores=record.scores, event=event)
        self._ledger.put(replace(record, rungs=(*record.rungs, rung)))
        record = self._ledger.judge(self._ledger.records[record.number])
        if not self._store.update(record):
            self._give_up(record)
            return
        verdict = record.rungs[-1].verdict
        if verdict is not None and verdict.goes_on:
            self._emit(EventKind.RUNG, record)
            self._ready.append(record)
        else:
            reason = f"not among the best of its cost at {record.examples / self._plan.n_full_examples:.0%}"
            self._finish(_ended(record, Outcome.STOPPED, reason))

    def _interrupt(self, records: Sequence[TrialRecord], reason: str) -> None:
        with self._store.together():
            for record in records:
                self._finish(_ended(record, Outcome.INTERRUPTED, reason))
        self._tell()

    def _finish(self, record: TrialRecord, *, learn: bool = False, quiet: bool = False) -> None:
        """Write a trial's end to the record, then tell the sampler."""
        record = replace(record, last_event=self._ledger.next_event())
        if not self._store.update(record):
            self._give_up(record)
            return
        self._ledger.put(record)
        state = TrialState.PRUNED if learn else STATES[record.outcome]
        values = [record.value(objective.name) for objective in self._plan.objectives]
        complete = values if state is TrialState.COMPLETE else None
        if record.number in self._tickets:
            self._sampler.tell(self._tickets.pop(record.number), state, complete)
        elif not record.baseline and not quiet and state is not TrialState.FAIL:
            self._sampler.remember(*self._store.parameters(record.number), state, values=complete)
        if not quiet:
            self._emit(EventKind.FINISHED, record)

    def _give_up(self, record: TrialRecord) -> None:
        """Leave a trial to the driver that has ended it, having taken this one for dead."""
        if record.number in self._tickets:
            self._sampler.tell(self._tickets.pop(record.number), TrialState.FAIL)
        self._take_in()

    def _failure(self, result: SegmentResult) -> str:
        last_line = _last_line(result.error, otherwise="no error was given")
        return f"{last_line} (see {self._folder.log(result.trial)})"

    # What is left ---------------------------------------------------------------------------------------------

    def _seconds_left(self) -> float | None:
        """Return the time until training must end, with time kept back for the final check."""
        left = self._time_left()
        if left is None or not self._plan.test:
            return left
        n_rounds = ceil(self._ledger.n_compared() / self._executor.n_workers)
        return max(0.0, left - n_rounds * self._ledger.evaluation_seconds())

    def _time_left(self) -> float | None:
        """Return the time until everything must end."""
        if self._plan.timeout_seconds is None:
            return None
        return max(0.0, self._start + self._plan.timeout_seconds - self._executor.now())

    def _late(self) -> bool:
        return self._time_left() == 0

    def _ending(self) -> bool:
        return self._should_stop() or self._seconds_left() == 0

    def _on_refused(self, record: TrialRecord) -> None:
        self._emit(EventKind.REFUSED, record)

    def _emit(self, kind: EventKind, record: TrialRecord) -> None:
        self._events.append((kind, record))

    def _tell(self) -> None:
        """Say what has happened, now that it is written."""
        events, self._events = self._events, []
        for kind, record in events:
            self._on_event(Event(kind=kind, trial=record, progress=self._progress(), metric=self._plan.metric.name))

    def _progress(self) -> Progress:
        return self._ledger.progress(
            elapsed_seconds=self._executor.now() - self._start,
            n_refused=sum(self._proposals.n_refused.values()),
            n_workers=self._executor.n_workers,
        )


def _first_trial_on(device: str, store: StudyStore) -> int:
    """Return the number of the first trial that the record has, or will have, of the present device."""
    known = store.part("device")
    if known is None or known["name"] != device:
        # A record that names no device was begun before it could, or is empty.
        known = {"name": device, "first_trial": 0 if known is None else len(store.records())}
        store.set_part("device", known)
    return int(known["first_trial"])


def _at_once(jobs: Sequence[Callable[[], object]]) -> None:
    """Do jobs that wait for a disk, several at a time."""
    if len(jobs) == 1:
        jobs[0]()
    elif jobs:
        with ThreadPoolExecutor(max_workers=min(N_WRITERS, len(jobs))) as writers:
            for done in [writers.submit(job) for job in jobs]:
                done.result()  # raises what the job raised


def _ended(record: TrialRecord, outcome: Outcome, reason: str = "") -> TrialRecord:
    """Return a trial with its end; where its worker was lost on the way, that is said too."""
    times = {0: "", 1: "once"}.get(record.n_retries, f"{record.n_retries} times")
    retried = f"run again {times}, since its worker was lost" if times else ""
    return replace(record, outcome=outcome, reason="; ".join(part for part in (reason, retried) if part))


def _last_line(error: str, *, otherwise: str) -> str:
    """Return what a traceback ends with, or `otherwise` where there is none."""
    return (error.strip().splitlines() or [otherwise])[-1]
