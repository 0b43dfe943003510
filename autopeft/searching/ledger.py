"""What the trials so far say: which run, which may go on, which are on the front."""

from collections import Counter

from autopeft.searching.pareto import compared, eligible
from autopeft.searching.plan import Baseline, SearchPlan
from autopeft.searching.rungs import RungEntry, promotable
from autopeft.spec.event import Progress
from autopeft.spec.trial import Outcome, TrialRecord


class Ledger:
    """Every trial of a study by number, and the questions that the loop asks of them.

    Attributes:
        records: The trials as they stand; the loop puts each change in here after writing it down.
    """

    def __init__(self, plan: SearchPlan, records: tuple[TrialRecord, ...]) -> None:
        self._plan = plan
        self.records: dict[int, TrialRecord] = {record.number: record for record in records}

    def put(self, record: TrialRecord) -> TrialRecord:
        """Take in a new trial, or a trial's new state."""
        self.records[record.number] = record
        return record

    def root(self, record: TrialRecord) -> int:
        """Return the number of the trial that a chain of continued trials began with."""
        while record.continues is not None:
            record = self.records[record.continues]
        return record.number

    def running(self) -> list[TrialRecord]:
        """Return the trials that run."""
        return [record for record in self.records.values() if record.outcome is Outcome.RUNNING]

    def has_tried(self, baseline: Baseline) -> bool:
        """Return whether a baseline has been tried."""
        return any(baseline.is_tried_in(record) for record in self.records.values())

    def n_started(self) -> int:
        """Return how many proposed designs have started training; a chain counts once."""
        return sum(
            not record.baseline and record.continues is None and record.outcome is not Outcome.INFEASIBLE
            for record in self.records.values()
        )

    def interrupted(self) -> list[TrialRecord]:
        """Return the trials that were cut short and that nothing has continued."""
        continued = {record.continues for record in self.records.values()}
        return [
            record
            for record in self.records.values()
            if record.outcome is Outcome.INTERRUPTED and record.number not in continued
        ]

    def goes_on(self, record: TrialRecord) -> bool:
        """Return whether a trial that has just been scored at a rung may train on."""
        return self._plan.halving is None or self.root(record) in self._chosen(len(record.rungs) - 1)

    def promotable(self) -> TrialRecord | None:
        """Return a trial that was stopped, and that later results have made one of the best at its rung."""
        if self._plan.halving is None:
            return None
        continued = {record.continues for record in self.records.values()}
        for rung in reversed(range(len(self._plan.halving.rungs))):
            chosen = self._chosen(rung)
            for record in self.records.values():
                stopped_here = record.outcome is Outcome.STOPPED and len(record.rungs) == rung + 1
                if stopped_here and record.number not in continued and self.root(record) in chosen:
                    return record
        return None

    def compared(self) -> list[TrialRecord]:
        """Return what the final check scores: the front, and the baselines that it is compared with."""
        return compared(list(self.records.values()), self._plan.objectives)

    def evaluation_seconds(self) -> float:
        """Return the longest time that one evaluation of a complete trial has taken, on average over its rungs."""
        complete = [r for r in self.records.values() if r.outcome is Outcome.COMPLETE]
        return max((r.measured.evaluation_seconds / (len(r.rungs) + 1) for r in complete), default=0.0)

    def progress(self, *, elapsed_seconds: float, n_ended: int, n_refused: int) -> Progress:
        """Return how far the search is, `n_ended` trials having ended in this call."""
        counts = Counter(record.outcome for record in self.records.values())
        metric = self._plan.metric
        scores = [record.scores[metric.name] for record in eligible(list(self.records.values()))]
        n_left = self._plan.n_trials - self.n_started() + counts[Outcome.RUNNING]
        remaining = elapsed_seconds / n_ended * n_left if n_ended else None
        if remaining is not None and self._plan.timeout_seconds is not None:
            remaining = min(remaining, max(0.0, self._plan.timeout_seconds - elapsed_seconds))
        return Progress(
            n_started=self.n_started(),
            n_trials=self._plan.n_trials,
            n_running=counts[Outcome.RUNNING],
            n_complete=counts[Outcome.COMPLETE],
            n_stopped=counts[Outcome.STOPPED],
            n_infeasible=n_refused,
            n_failed=counts[Outcome.FAILED] + counts[Outcome.OUT_OF_MEMORY],
            best=min(scores, key=metric.loss, default=None),
            elapsed_seconds=elapsed_seconds,
            remaining_seconds=remaining,
        )

    def _chosen(self, rung: int) -> frozenset[int]:
        """Return the chains that may go on from a rung, by their roots."""
        if self._plan.halving is None:
            return frozenset()
        entries: dict[int, RungEntry] = {}
        for record in self.records.values():
            if len(record.rungs) > rung and not record.baseline:
                blocks = record.design.blocks
                root = self.root(record)
                entries[root] = RungEntry(
                    trial=root,
                    cost=record.value(self._plan.cost.name),
                    loss=self._plan.metric.loss(record.rungs[rung].scores[self._plan.metric.name]),
                    tie=record.rungs[rung].scores.get("loss", 0.0),
                    base=record.design.quantization,
                    slow_start=bool(blocks) and all(block.slow_start for block in blocks),
                )
        return promotable(list(entries.values()), self._plan.halving)
