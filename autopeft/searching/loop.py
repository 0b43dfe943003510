"""The search loop: keeps the workers busy, judges what comes back, and writes everything down.

The loop is handed its cost model and its executor; it knows neither models nor training. It does not know
which process it trains in, nor how long a segment takes.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from math import ceil, isfinite

from optuna.trial import TrialState

from autopeft.errors import BudgetError, ExecutorError, SearchError
from autopeft.executors.base import Executor
from autopeft.searching.folder import StudyFolder
from autopeft.searching.ledger import Ledger
from autopeft.searching.plan import Baseline, CostModel, SearchPlan
from autopeft.searching.proposals import Proposals
from autopeft.searching.sampler import Proposal, Sampler
from autopeft.searching.storage import STATES, StudyStore
from autopeft.spec.cost import Estimate, Measured, excess
from autopeft.spec.design import Design
from autopeft.spec.event import Callback, Event, EventKind
from autopeft.spec.trial import Outcome, RungScore, Segment, SegmentResult, SegmentStatus, TrialRecord

MAX_FAILURES_IN_A_ROW = 5
"""Failed trials for each worker, with none that succeeded between them, after which the fault is not the designs'."""


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
        refusal: BudgetError | None = None
        try:
            while True:
                if refusal is None:
                    refusal = self._fill_workers()  # raised once what other workers train has come to its end
                if not self._ledger.running():
                    break
                for result in self._executor.wait():
                    self._handle(result)
                self._check_failures()
        except (SearchError, ExecutorError):
            for record in self._ledger.running():
                self._finish(replace(record, outcome=Outcome.INTERRUPTED, reason="the search ended with an error"))
            raise
        if refusal is not None:
            raise refusal

    def check_front(self) -> None:
        """Score the front on the test split: each design once, never again, and never to choose by.

        Designs scored by an earlier run keep their scores; what the time does not allow waits for the next call.
        """
        tests: dict[str, dict[str, dict[str, float]]] = self._store.fact("tests") or {}
        waiting = [r for r in self._ledger.compared() if str(r.number) not in tests] if self._plan.test else []
        running = 0
        while waiting or running:
            while waiting and self._executor.free() > 0 and not self._should_stop() and not self._late():
                record = waiting.pop(0)
                self._executor.submit(replace(self._segment(record), stage="test", deadline_seconds=self._time_left()))
                running += 1
            if not running:
                return
            for result in self._executor.wait():
                running -= 1
                if result.status is SegmentStatus.DONE:
                    self._write_predictions("test", result)
                    if result.samples:
                        samples = [asdict(sample) for sample in result.samples]
                        self._folder.write_json(self._folder.samples(result.trial), samples)
                    tests[str(result.trial)] = {
                        "scores": dict(result.scores),
                        "standard_errors": dict(result.standard_errors),
                    }
                    self._store.set_fact("tests", tests)
                elif result.error:
                    self._folder.write(self._folder.log(result.trial), result.error.encode())

    # What is next ---------------------------------------------------------------------------------------------

    def _adopt(self) -> None:
        """Take over what an earlier run left: end its running trials, and queue what can go on."""
        for record in self._store.recover():
            self._finish(replace(record, outcome=Outcome.INTERRUPTED, reason="the search was killed"), quiet=True)
        for record in self._store.records():
            self._ledger.put(record)
        self._interrupted = self._ledger.interrupted()

    def _fill_workers(self) -> BudgetError | None:
        """Start a trial on every free worker, the longest first; return why no more can be proposed, if so."""
        batch: list[TrialRecord] = []
        refusal = None
        try:
            while self._executor.free() > len(batch) and not self._ending() and (record := self._next()):
                batch.append(self._ledger.put(record))
        except BudgetError as error:
            refusal = error
        # What takes longest decides when all are done, and workers that must first start up take what comes last.
        for record in sorted(batch, key=self._seconds_left_of, reverse=True):
            self._submit(record)
        return refusal

    def _longest(self, records: list[TrialRecord]) -> TrialRecord:
        """Return what to go on with: where several workers share the work, the trial that has most before it."""
        return records[0] if self._executor.n_workers == 1 else max(records, key=self._seconds_left_of)

    def _seconds_left_of(self, record: TrialRecord) -> float:
        """Predict the training that a trial has before it until its next score; 0 for all before anything is timed."""
        full = self._ledger.calibration.train_seconds(record.estimate, record.design.quantization) or 0.0
        return full * max(0, self._stop(record) - record.examples) / self._plan.n_full_examples

    def _next(self) -> TrialRecord | None:
        """Return the trial to train next, as it stands in the record; None where there is nothing to start."""
        with self._store.together():  # refusals, and the trial that they led to
            return self._find_next()

    def _find_next(self) -> TrialRecord | None:
        if self._interrupted:
            record = self._longest(self._interrupted)
            self._interrupted.remove(record)
            return self._continue(record)
        for baseline in self._plan.baselines:
            if not self._ledger.has_tried(baseline):
                return self._start_baseline(baseline)
        if stopped := self._ledger.promotable():
            return self._continue(self._longest(stopped))
        if self._ledger.n_started() < self._plan.n_trials:
            accepted = self._proposals.next(self._on_refused)
            if accepted is not None:
                return self._start_trial(*accepted)
        return None

    def _start_trial(self, proposal: Proposal, estimate: Estimate) -> TrialRecord:
        record = self._store.add(
            self._new_record(proposal.draw.design, proposal.draw.learning_rates, estimate),
            proposal.params,
            proposal.distributions,
        )
        self._tickets[record.number] = proposal.ticket
        return record

    def _start_baseline(self, baseline: Baseline) -> TrialRecord | None:
        estimate = self._cost_model(baseline.design)
        record = replace(self._new_record(baseline.design, baseline.learning_rates, estimate), baseline=baseline.name)
        reason = baseline.refusal(estimate, record.excess, self._plan.memory_bytes)
        if baseline.name == "full":
            record = replace(record, excess={})  # no budget applies to it
        if not reason:
            return self._store.add(record)
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
        checkpoint = self._folder.checkpoint(record.number)
        if checkpoint.is_file():
            added = self._store.add(successor, *self._store.parameters(record.number))
            self._folder.write(self._folder.checkpoint(added.number), checkpoint.read_bytes())
            return added
        fresh = replace(successor, examples=0, rungs=(), scores={}, standard_errors={}, measured=Measured())
        return self._store.add(fresh, *self._store.parameters(record.number))

    # What comes back ------------------------------------------------------------------------------------------

    def _submit(self, record: TrialRecord) -> None:
        self._executor.submit(self._segment(record))
        self._emit(EventKind.STARTED, record)

    def _segment(self, record: TrialRecord) -> Segment:
        checkpoint = self._folder.checkpoint(record.number)
        return Segment(
            trial=record.number,
            design=record.design,
            learning_rates=record.learning_rates,
            seed=record.seed,
            start=record.examples,
            stop=self._stop(record),
            full=self._plan.n_full_examples,
            checkpoint=checkpoint.read_bytes() if checkpoint.is_file() else None,
            deadline_seconds=self._seconds_left(),
        )

    def _stop(self, record: TrialRecord) -> int:
        """Return the examples after which a trial is scored next."""
        stops = self._plan.stops(record)
        return stops[min(len(record.rungs), len(stops) - 1)]

    def _handle(self, result: SegmentResult) -> None:
        if result.checkpoint is not None:
            self._folder.write(self._folder.checkpoint(result.trial), result.checkpoint)
        record = self._ledger.records[result.trial]
        record = replace(record, examples=result.examples, measured=record.measured + result.measured)
        if result.error:
            self._folder.write(self._folder.log(record.number), result.error.encode())
        status = result.status
        if status is SegmentStatus.DONE and not all(isfinite(score) for score in result.scores.values()):
            status = SegmentStatus.DIVERGED
        match status:
            case SegmentStatus.DONE:
                self._n_failures = 0
                record = replace(record, scores=dict(result.scores), standard_errors=dict(result.standard_errors))
                self._score(record, result)
            case SegmentStatus.INTERRUPTED:
                why = "stopped on request" if self._should_stop() else "the time limit was reached"
                self._finish(replace(record, outcome=Outcome.INTERRUPTED, reason=why))
            case SegmentStatus.DIVERGED:
                why = _last_line(result.error, otherwise="a score was not finite")
                self._finish(replace(record, outcome=Outcome.FAILED, reason=why), learn=True)
            case SegmentStatus.OUT_OF_MEMORY:
                self._finish(replace(record, outcome=Outcome.OUT_OF_MEMORY, reason=self._failure(result)))
            case SegmentStatus.FAILED:
                self._finish(replace(record, outcome=Outcome.FAILED, reason=self._failure(result)))
                self._n_failures += 1
                self._last_failure = self._failure(result)

    def _check_failures(self) -> None:
        # While one worker fails so often, each of the others may have failed as often without a fault of its own.
        if self._n_failures >= MAX_FAILURES_IN_A_ROW * self._executor.n_workers:
            raise SearchError(f"{self._n_failures} trials in a row failed, the last one with: {self._last_failure}")

    def _score(self, record: TrialRecord, result: SegmentResult) -> None:
        """Record the scores of a segment that reached its end, and decide whether the trial goes on."""
        if record.examples >= self._plan.n_full_examples:
            self._folder.write_adapter(record.number, result.artifact)
            self._write_predictions("validation", result)
            self._finish(replace(record, outcome=Outcome.COMPLETE))
            return
        event = self._ledger.next_event()
        rung = RungScore(rung=len(record.rungs), examples=record.examples, scores=record.scores, event=event)
        self._ledger.put(replace(record, rungs=(*record.rungs, rung)))
        record = self._ledger.judge(self._ledger.records[record.number])
        self._store.update(record)
        verdict = record.rungs[-1].verdict
        if verdict is not None and verdict.goes_on:
            self._emit(EventKind.RUNG, record)
            if self._ending():
                self._finish(replace(record, outcome=Outcome.INTERRUPTED, reason="the search ended"))
            else:
                self._executor.submit(self._segment(record))
        else:
            reason = f"not among the best of its cost at {record.examples / self._plan.n_full_examples:.0%}"
            self._finish(replace(record, outcome=Outcome.STOPPED, reason=reason))

    def _finish(self, record: TrialRecord, *, learn: bool = False, quiet: bool = False) -> None:
        """Write a trial's end to the record, then tell the sampler."""
        record = self._ledger.put(replace(record, last_event=self._ledger.next_event()))
        self._store.update(record)
        state = TrialState.PRUNED if learn else STATES[record.outcome]
        values = [record.value(objective.name) for objective in self._plan.objectives]
        complete = values if state is TrialState.COMPLETE else None
        if record.number in self._tickets:
            self._sampler.tell(self._tickets.pop(record.number), state, complete)
        elif not record.baseline and not quiet and state is not TrialState.FAIL:
            self._sampler.remember(*self._store.parameters(record.number), state, values=complete)
        if not quiet:
            self._emit(EventKind.FINISHED, record)

    def _failure(self, result: SegmentResult) -> str:
        last_line = _last_line(result.error, otherwise="no error was given")
        return f"{last_line} (see {self._folder.log(result.trial)})"

    def _write_predictions(self, split: str, result: SegmentResult) -> None:
        self._folder.write_json(self._folder.predictions(split, result.trial), list(result.predictions))

    # What is left ---------------------------------------------------------------------------------------------

    def _seconds_left(self) -> float | None:
        """Return the time until training must end, with time kept back for the final check."""
        left = self._time_left()
        if left is None or not self._plan.test:
            return left
        n_rounds = ceil(len(self._ledger.compared()) / self._executor.n_workers)
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
        progress = self._ledger.progress(
            elapsed_seconds=self._executor.now() - self._start,
            n_refused=sum(self._proposals.n_refused.values()),
            n_workers=self._executor.n_workers,
        )
        self._on_event(Event(kind=kind, trial=record, progress=progress, metric=self._plan.metric.name))


def _first_trial_on(device: str, store: StudyStore) -> int:
    """Return the number of the first trial that the record has, or will have, of the present device."""
    known = store.fact("device")
    if known is None or known["name"] != device:
        # A record that names no device was begun before it could, or is empty.
        known = {"name": device, "first_trial": 0 if known is None else len(store.records())}
        store.set_fact("device", known)
    return int(known["first_trial"])


def _last_line(error: str, *, otherwise: str) -> str:
    """Return what a traceback ends with, or `otherwise` where there is none."""
    return (error.strip().splitlines() or [otherwise])[-1]
