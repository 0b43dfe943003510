"""Which trial is next: what is begun goes on first, then baselines, promotions and new designs.

Under a time limit nothing is begun that cannot reach its next score in the time that is left: a new design its first
rung, a stopped one its next. What is passed over for that waits for the next call.
"""

from collections.abc import Mapping
from dataclasses import replace

from autopeft.errors import BudgetError
from autopeft.searching.interrupted import Interrupted
from autopeft.searching.ledger import Ledger
from autopeft.searching.plan import Baseline, CostModel, SearchPlan
from autopeft.searching.proposals import Proposals
from autopeft.searching.sampler import Proposal
from autopeft.searching.segments import Segments
from autopeft.searching.trials import Trials
from autopeft.spec.cost import Estimate, excess
from autopeft.spec.design import Design
from autopeft.spec.event import EventKind
from autopeft.spec.trial import Outcome, TrialRecord
from autopeft.study.database import TurnLostError
from autopeft.study.store import StudyStore

MAX_TOO_LONG = 3
"""New designs in a row without time for their first rung after which no more are proposed in this call."""


class Agenda:
    """Says which trial a free worker trains next.

    Args:
        longest_first: Whether several workers share the work: then, of several that can go on, the one with most
            training before it does.

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
        ledger: Ledger,
        proposals: Proposals,
        segments: Segments,
        interrupted: Interrupted,
        trials: Trials,
        longest_first: bool,
    ) -> None:
        self.refusal: BudgetError | None = None
        self.lacks_time = False
        self._proposes = True
        self._plan = plan
        self._store = store
        self._cost_model = cost_model
        self._ledger = ledger
        self._proposals = proposals
        self._segments = segments
        self._interrupted = interrupted
        self._trials = trials
        self._longest_first = longest_first

    def next(self) -> TrialRecord | None:
        """Return the trial to train next, as it stands in the record; None where there is nothing to start.

        Raises:
            TurnLostError: Another driver of the study may have decided the same; it waits for the next call.
        """
        while self._trials.ready:
            if self._has_time(record := self._trials.ready.popleft()):
                return record
            self._trials.interrupt([record], "too little time was left for its next rung")
        if self.refusal is not None:
            return None
        try:
            return self._begin()
        except BudgetError as error:
            self.refusal = error
            return None

    def _begin(self) -> TrialRecord | None:
        """Begin a trial that none of this driver's is yet."""
        if (record := self._take_interrupted(here=True)) is not None:
            return self._continue(record)
        for baseline in self._plan.baselines:
            if not self._ledger.has_tried(baseline) and (record := self._start_baseline(baseline)) is not None:
                return record
        if (record := self._next_promotable()) is not None:
            return self._continue(record)
        if self._may_start() and (record := self._start_proposed()) is not None:
            return record
        # What another driver began and did not end comes last: without its checkpoints it starts afresh here.
        record = self._take_interrupted(here=False)
        return None if record is None else self._continue(record)

    def _may_start(self) -> bool:
        return self._ledger.n_started() < self._plan.n_trials

    def _has_time(self, record: TrialRecord) -> bool:
        if self._segments.has_time(record):
            return True
        self.lacks_time = True
        return False

    def _take_interrupted(self, *, here: bool) -> TrialRecord | None:
        """Return the next trial that was cut short; those without time, and those that begin above `n_trials`, wait."""
        while (record := self._interrupted.take(here=here)) is not None:
            begins = not record.baseline and not record.has_started
            if self._has_time(record) and not (begins and not self._may_start()):
                return record
        return None

    def _next_promotable(self) -> TrialRecord | None:
        for stopped in self._ledger.promotable():
            here = [record for record in stopped if self._segments.is_here(record) and self._has_time(record)]
            if here:
                return max(here, key=self._segments.seconds_left_of) if self._longest_first else here[0]
        return None

    def _start_proposed(self) -> TrialRecord | None:
        n_too_long = 0
        while self._proposes:
            accepted = self._proposals.next(lambda record: self._trials.note(EventKind.REFUSED, record))
            if accepted is None:
                return None
            proposal, estimate = accepted
            record = self._new_record(proposal.draw.design, proposal.draw.learning_rates, estimate)
            if self._has_time(record):
                return self._start(record, proposal)
            self._proposals.take_back(proposal)
            n_too_long += 1
            self._proposes = n_too_long < MAX_TOO_LONG
        return None

    def _start(self, record: TrialRecord, proposal: Proposal) -> TrialRecord:
        try:
            return self._trials.start(record, proposal.params, proposal.distributions, ticket=proposal.ticket)
        except TurnLostError:
            self._proposals.take_back(proposal)
            raise

    def _start_baseline(self, baseline: Baseline) -> TrialRecord | None:
        estimate = self._cost_model(baseline.design)
        record = replace(self._new_record(baseline.design, baseline.learning_rates, estimate), baseline=baseline.name)
        reason = baseline.refusal(estimate, self._plan.memory_bytes)
        if baseline.name == "full":
            record = replace(record, excess={})  # no budget applies to it
        if not reason:
            return self._trials.start(record) if self._has_time(record) else None
        self._ledger.put(self._store.add(replace(record, outcome=Outcome.INFEASIBLE, reason=reason)))
        return None

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
        successor, _ = self._segments.as_saved(replace(successor, number=record.number))
        try:
            return self._trials.start(successor, *self._store.parameters(record.number))
        except TurnLostError:
            if self._ledger.is_interrupted(record):
                self._interrupted.put_back(record)
            raise
