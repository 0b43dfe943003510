"""What becomes of trials: started, scored, run again, ended.

Each change is written to the record, then taken into the table, then told to the sampler; people hear of it last.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from optuna.distributions import BaseDistribution

from autopeft.errors import SearchError
from autopeft.searching.plan import SearchPlan
from autopeft.searching.samplers.base import Lesson, Observation, Proposal, Sampler
from autopeft.searching.scheduler import Scheduler
from autopeft.searching.table import TrialTable
from autopeft.spec.event import EventKind
from autopeft.spec.trial import Outcome, RungScore, SegmentResult, SegmentStatus, TrialRecord, finite
from autopeft.study.folder import StudyFolder
from autopeft.study.store import StudyStore

LESSONS: Mapping[Outcome, Lesson] = {
    Outcome.COMPLETE: "complete",
    Outcome.STOPPED: "worse",
    Outcome.INFEASIBLE: "worse",
}
"""What a sampler learns from how a trial ended; from the others, nothing."""
MAX_FAILURES_IN_A_ROW = 5
"""Failed trials for each worker, with none that succeeded between them, after which the fault is not the designs'."""
MAX_RETRIES = 2
"""How often a trial is run again after its worker was lost; then the design itself is suspect."""
MAX_KILLS = 3
"""How often the search may be killed while it trains one trial alone, which gains nothing; then the trial is why."""


class Trials:
    """The trials of this driver, and what it takes over from others.

    Args:
        scheduler: Decides whether a trial goes on.
        should_stop: True once the search should end early.

    Attributes:
        ready: Trials of this driver that train on at once, the next one first.
    """

    def __init__(
        self,
        plan: SearchPlan,
        *,
        store: StudyStore,
        folder: StudyFolder,
        sampler: Sampler,
        table: TrialTable,
        scheduler: Scheduler,
        should_stop: Callable[[], bool],
    ) -> None:
        self.ready: deque[TrialRecord] = deque()
        self._plan = plan
        self._store = store
        self._folder = folder
        self._sampler = sampler
        self._table = table
        self._scheduler = scheduler
        self._should_stop = should_stop
        self._proposals: dict[int, Proposal] = {}
        self._workers: dict[int, str] = {}
        self._events: list[tuple[EventKind, TrialRecord, str]] = []
        self._n_failures = 0
        self._last_failure = ""

    # Beginning ------------------------------------------------------------------------------------------------

    def start(
        self,
        record: TrialRecord,
        params: Mapping[str, Any] | None = None,
        distributions: Mapping[str, BaseDistribution] | None = None,
        *,
        proposal: Proposal | None = None,
    ) -> TrialRecord:
        """Add a trial to the record and return it with its number.

        Args:
            record: As it begins.
            params: What a sampler drew, where it did.
            distributions: What it drew that from.
            proposal: Of this driver's sampler, in the place of both.
        """
        if proposal is not None:
            params, distributions = proposal.params, proposal.distributions
        record = self._store.add(record, params, distributions)
        if proposal is not None:
            self._proposals[record.number] = proposal
        self.note(EventKind.STARTED, record)
        return record

    def adopt(self) -> None:
        """Take over what an earlier run left: end its running trials, and queue what can go on."""
        with self._store.turn():
            self._end_left(self._store.recover(), lambda _: "the search was killed")
            for record in self._store.records():
                self._table.put(record)

    def take_in(self) -> None:
        """Take over what other drivers of the study have done, and what those have left that are gone."""
        if not self._store.driver:
            return
        for record in self._store.changes():
            self._table.put(record)
        self._end_left(self._store.abandoned(), lambda record: f"{record.driver}, which trained it, is gone")
        self._sampler.update(unlearned(self._store))

    def _end_left(self, records: Sequence[TrialRecord], reason: Callable[[TrialRecord], str]) -> None:
        """End trials that a driver which is gone has left running.

        A trial that a driver trained alone when it was killed may be why: systems kill what takes more memory than
        there is. One that would have every search killed that takes it up fails, so that others have their turn.
        """
        n_left = Counter(record.driver for record in records)
        for record in records:
            was_killed = self._store.was_killed(record.driver) if record.driver else self._folder.was_left
            n_kills = record.n_kills + (was_killed and n_left[record.driver] == 1)
            record = replace(record, n_kills=n_kills, outcome=Outcome.INTERRUPTED, reason=reason(record))
            if n_kills >= MAX_KILLS:
                why = f"the search was killed {n_kills} times while it trained, and it gained no example in between"
                record = replace(record, outcome=Outcome.FAILED, reason=f"{why}: out of memory, perhaps")
            self._finish(record, quiet=record.outcome is Outcome.INTERRUPTED)

    # What comes back ------------------------------------------------------------------------------------------

    def take_result(self, result: SegmentResult) -> None:
        """Write down what a segment has come to, and what follows from it for its trial."""
        record, status = self._table.records[result.trial], result.status
        self._workers[result.trial] = result.worker
        if status is SegmentStatus.LOST:
            self._retry(record, result)
            return
        n_kills = 0 if result.examples > record.examples else record.n_kills
        measured = record.measured + result.measured
        record = replace(record, examples=result.examples, measured=measured, n_kills=n_kills)
        if status is SegmentStatus.DONE and result.odd_scores:
            status = SegmentStatus.DIVERGED
        match status:
            case SegmentStatus.DONE:
                self._n_failures = 0
                self._score(replace(record, scores=dict(result.scores), standard_errors=finite(result.standard_errors)))
            case SegmentStatus.INTERRUPTED:
                why = "stopped on request" if self._should_stop() else "the time limit was reached"
                self._finish(_ended(record, Outcome.INTERRUPTED, why))
            case SegmentStatus.DIVERGED:
                words = ", ".join(f"{name}={score}" for name, score in result.odd_scores.items())
                why = _last_line(result.error, otherwise=f"a score was not finite: {words}")
                self._finish(_ended(record, Outcome.FAILED, why), learn=True)
            case SegmentStatus.OUT_OF_MEMORY:
                self._finish(_ended(record, Outcome.OUT_OF_MEMORY, self._failure(result)))
            case SegmentStatus.FAILED:
                self._fail(_ended(record, Outcome.FAILED, self._failure(result)))

    def check_failures(self, *, n_workers: int) -> None:
        """Check that something still succeeds.

        Raises:
            SearchError: Several trials in a row failed.
        """
        # While one worker fails so often, each of the others may have failed as often without a fault of its own.
        if self._n_failures >= MAX_FAILURES_IN_A_ROW * n_workers:
            raise SearchError(f"{self._n_failures} trials in a row failed, the last one with: {self._last_failure}")

    def _retry(self, record: TrialRecord, result: SegmentResult) -> None:
        """Run a trial again from its last checkpoint: its worker was lost."""
        n_lost, why = record.n_retries + 1, self._failure(result)
        if n_lost > MAX_RETRIES:
            reason = f"its worker was lost {n_lost} times, the last time with: {why}"
            self._fail(replace(record, outcome=Outcome.FAILED, reason=reason))
            return
        reason = f"its worker was lost, and it runs again (retry {n_lost} of {MAX_RETRIES}): {why}"
        record = self._table.put(replace(record, n_retries=n_lost, reason=reason))
        self._store.update(record)
        self.note(EventKind.RETRIED, record)
        self.ready.append(record)

    def _fail(self, record: TrialRecord) -> None:
        self._finish(record)
        self._n_failures += 1
        self._last_failure = record.reason

    def _failure(self, result: SegmentResult) -> str:
        last_line = _last_line(result.error, otherwise="no error was given")
        return f"{last_line} (see {self._folder.log(result.trial)})"

    def _score(self, record: TrialRecord) -> None:
        """Record the scores of a segment that reached its end, and decide whether the trial goes on."""
        if record.examples >= self._plan.n_full_examples:
            self._finish(_ended(record, Outcome.COMPLETE))
            return
        self.take_in()
        event = self._table.next_event()
        rung = RungScore(rung=len(record.rungs), examples=record.examples, scores=record.scores, event=event)
        record = self._table.put(replace(record, rungs=(*record.rungs, rung)))
        verdict = self._scheduler.on_result(self._table, record)
        record = self._table.put(replace(record, rungs=(*record.rungs[:-1], replace(rung, verdict=verdict))))
        if not self._store.update(record):
            self._give_up(record)
            return
        if verdict.goes_on:
            self.note(EventKind.RUNG, record)
            self.ready.append(record)
        else:
            reason = f"not among the best of its cost at {record.examples / self._plan.n_full_examples:.0%}"
            self._finish(_ended(record, Outcome.STOPPED, reason))

    # Ending ---------------------------------------------------------------------------------------------------

    def interrupt(self, records: Sequence[TrialRecord], reason: str) -> None:
        """End trials that can go on in a later run."""
        with self._store.together():
            for record in records:
                self._finish(_ended(record, Outcome.INTERRUPTED, reason))

    def _finish(self, record: TrialRecord, *, learn: bool = False, quiet: bool = False) -> None:
        """Write a trial's end to the record, then tell the sampler."""
        record = replace(record, last_event=self._table.next_event())
        if not self._store.update(record):
            self._give_up(record)
            return
        self._table.put(record)
        self._tell(record, lesson="worse" if learn else LESSONS.get(record.outcome, "nothing"), quiet=quiet)
        if not quiet:
            self.note(EventKind.FINISHED, record)

    def _tell(self, record: TrialRecord, lesson: Lesson, *, quiet: bool = False) -> None:
        """Tell the sampler how its proposal ended, or a trial that it did not propose and can learn from."""
        proposal = self._proposals.pop(record.number, None)
        if proposal is not None:
            params, distributions = proposal.params, proposal.distributions
        elif record.baseline or quiet or lesson == "nothing":
            return
        else:
            params, distributions = self._store.parameters(record.number)
        ticket = None if proposal is None else proposal.ticket
        self._sampler.update(
            [Observation(params=params, distributions=distributions, lesson=lesson, record=record, ticket=ticket)]
        )

    def _give_up(self, record: TrialRecord) -> None:
        """Leave a trial to the driver that has ended it, having taken this one for dead."""
        self._tell(record, "nothing")
        self.take_in()

    # Who hears of it ------------------------------------------------------------------------------------------

    def note(self, kind: EventKind, record: TrialRecord) -> None:
        """Keep what has happened until it is written."""
        self._events.append((kind, record, self._workers.get(record.number, "")))

    def news(self) -> list[tuple[EventKind, TrialRecord, str]]:
        """Return what has happened since the last call, now that it is written, and which worker had the trial."""
        events, self._events = self._events, []
        return events


def unlearned(store: StudyStore) -> Iterator[Observation]:
    """Yield what a record holds that a sampler can learn from and did not propose itself here, each trial once."""
    for trial, record in store.unlearned():
        yield Observation(
            params=trial.params,
            distributions=trial.distributions,
            lesson="complete" if record.outcome is Outcome.COMPLETE else "worse",
            record=record,
            excess=trial.constraints,
        )


def _ended(record: TrialRecord, outcome: Outcome, reason: str = "") -> TrialRecord:
    """Return a trial with its end; where its worker was lost on the way, that is said too."""
    times = {0: "", 1: "once"}.get(record.n_retries, f"{record.n_retries} times")
    retried = f"run again {times}, since its worker was lost" if times else ""
    return replace(record, outcome=outcome, reason="; ".join(part for part in (reason, retried) if part))


def _last_line(error: str, *, otherwise: str) -> str:
    """Return what a traceback ends with, or `otherwise` where there is none."""
    return (error.strip().splitlines() or [otherwise])[-1]
