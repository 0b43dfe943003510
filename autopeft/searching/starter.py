"""Begins what the scheduler says, one trial for a free worker at a time.

Under a time limit nothing is begun that cannot reach its next score in the time that is left: a new design its first
rung, a stopped one its next. What is passed over for that waits for the next call.
"""

from collections.abc import Mapping
from dataclasses import replace

from autopeft.errors import BudgetError
from autopeft.searching.plan import Baseline, CostModel, SearchPlan
from autopeft.searching.proposals import Proposals
from autopeft.searching.samplers.base import Proposal
from autopeft.searching.scheduler import Job, Resume, Scheduler, Start
from autopeft.searching.segments import Segments
from autopeft.searching.table import TrialTable
from autopeft.searching.trials import Trials
from autopeft.spec.cost import Estimate, excess
from autopeft.spec.design import Design
from autopeft.spec.event import EventKind
from autopeft.spec.trial import Outcome, TrialRecord
from autopeft.study.store import StudyStore
from autopeft.study.turn import DecisionLostError

MAX_TOO_LONG = 3
"""New designs in a row without time for their first rung after which no more are proposed in this call."""


class Starter:
    """Says which trial a free worker trains next, after writing down that it begins; the scheduler's resources.

    Args:
        n_workers: That share the work.

    Attributes:
        refusal: Why no more designs are proposed, where the budget refused too many.
        lacks_time: Whether something was passed over because too little time is left for it.
    """

    def __init__(
        self,
        plan: SearchPlan,
        *,
        store: StudyStore,
        cost_model: CostModel,
        table: TrialTable,
        scheduler: Scheduler,
        proposals: Proposals,
        segments: Segments,
        trials: Trials,
        n_workers: int,
    ) -> None:
        self.n_workers = n_workers
        self.refusal: BudgetError | None = None
        self.lacks_time = False
        self._proposes = True
        self._is_used_up = False
        self._passed_over: list[Baseline] = []
        self._plan = plan
        self._store = store
        self._cost_model = cost_model
        self._table = table
        self._scheduler = scheduler
        self._proposals = proposals
        self._segments = segments
        self._trials = trials

    # What the scheduler asks ------------------------------------------------------------------------------------------

    @property
    def baselines(self) -> list[Baseline]:
        """Return the baselines that were not tried yet, but for those that were just passed over for lack of time."""
        return [b for b in self._plan.baselines if b not in self._passed_over and not self._table.has_tried(b)]

    @property
    def can_propose(self) -> bool:
        """Return whether the sampler may still propose designs in this call."""
        return self._proposes and not self._is_used_up and self.refusal is None

    def has_time(self, record: TrialRecord) -> bool:
        """Return whether the time left lets a trial reach its next score; that it does not is noted."""
        if self._segments.has_time(record):
            return True
        self.lacks_time = True
        return False

    def is_here(self, record: TrialRecord) -> bool:
        """Return whether this driver has what a trial goes on from."""
        return self._segments.is_here(record)

    def training_seconds(self, record: TrialRecord) -> float:
        """Predict the training until a trial's next score."""
        return self._segments.seconds_left_of(record)

    # What it says -----------------------------------------------------------------------------------------------------

    def next(self) -> TrialRecord | None:
        """Return the trial to train next, as it stands in the record; None where there is nothing to start.

        Raises:
            DecisionLostError: Another driver of the study may have decided the same; it waits for the next call.
        """
        while self._trials.ready:
            if self.has_time(waiting := self._trials.ready.popleft()):
                return waiting
            self._trials.interrupt([waiting], "too little time was left for its next rung")
        if self.refusal is not None:
            return None
        self._passed_over.clear()
        self._is_used_up = False
        try:
            while (job := self._scheduler.next_job(self._table, self)) is not None:
                if (begun := self._begin(job)) is not None:
                    return begun
        except BudgetError as error:
            self.refusal = error
        return None

    def _begin(self, job: Job) -> TrialRecord | None:
        """Do what the scheduler says; None where that cannot be, and the scheduler has something else to say."""
        try:
            match job:
                case Resume():
                    return self._resume(job.record)
                case Start(baseline=None):
                    return self._start_proposed()
                case Start(baseline=Baseline() as baseline):
                    return self._start_baseline(baseline)
        except DecisionLostError:
            self._scheduler.put_back(job)
            raise
        return None

    def _start_proposed(self) -> TrialRecord | None:
        """Begin the next design that the budget and the time allow; None, and no more are asked for, without one."""
        for _ in range(MAX_TOO_LONG):
            accepted = self._proposals.next(lambda record: self._trials.note(EventKind.REFUSED, record))
            if accepted is None:
                self._is_used_up = True
                return None
            proposal, estimate = accepted
            record = self._new_record(proposal.draw.design, proposal.draw.learning_rates, estimate)
            if self.has_time(record):
                return self._start_design(record, proposal)
            self._proposals.take_back(proposal)
        self._proposes = False
        return None

    def _start_design(self, record: TrialRecord, proposal: Proposal) -> TrialRecord:
        try:
            return self._trials.start(record, proposal=proposal)
        except DecisionLostError:
            self._proposals.take_back(proposal)
            raise

    def _start_baseline(self, baseline: Baseline) -> TrialRecord | None:
        estimate = self._cost_model(baseline.design)
        record = replace(self._new_record(baseline.design, baseline.learning_rates, estimate), baseline=baseline.name)
        reason = baseline.refusal(estimate, self._plan.memory_bytes)
        if baseline.name == "full":
            record = replace(record, excess={})  # no budget applies to it
        if reason:
            self._table.put(self._store.add(replace(record, outcome=Outcome.INFEASIBLE, reason=reason)))
            return None
        if self.has_time(record):
            return self._trials.start(record)
        self._passed_over.append(baseline)
        return None

    def _resume(self, record: TrialRecord) -> TrialRecord:
        """Add a trial that goes on from another's checkpoint; without a checkpoint it starts afresh."""
        successor = replace(record, outcome=Outcome.RUNNING, continues=record.number, reason="")
        successor = replace(successor, first_event=self._table.next_event(), last_event=None)
        successor, _ = self._segments.as_saved(replace(successor, number=record.number))
        return self._trials.start(successor, *self._store.parameters(record.number))

    def _new_record(self, design: Design, rates: Mapping[str, float], estimate: Estimate) -> TrialRecord:
        return TrialRecord(
            number=-1,
            design=design,
            learning_rates=rates,
            seed=self._plan.seed * 100_003 + len(self._table.records),
            outcome=Outcome.RUNNING,
            estimate=estimate,
            excess=excess(self._plan.limits, estimate),
            first_event=self._table.next_event(),
        )
