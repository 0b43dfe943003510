"""The search loop with several workers, under a virtual clock."""

import pytest

from autopeft.errors import BudgetError, SearchError
from autopeft.executors.simulated import SimulatedExecutor
from autopeft.searching.trials import MAX_FAILURES_IN_A_ROW
from autopeft.spec.trial import Outcome, Segment, SegmentResult, SegmentStatus
from autopeft.study.test_scores import read_scores
from tests.bench import FULL, Bench, KnownWorker


class Punctual(KnownWorker):
    """Keeps deadlines as the real worker does: without time for an evaluation it makes none."""

    def run(self, segment: Segment, should_stop: object) -> SegmentResult:
        result = super().run(segment, lambda: False)
        if segment.stage == "test" and segment.deadline_seconds is not None and segment.deadline_seconds < 0.1:
            return SegmentResult(trial=segment.trial, status=SegmentStatus.INTERRUPTED)
        return result


@pytest.mark.parametrize("n_workers", [1, 3])
def test_a_time_limit_leaves_the_final_check_its_time(bench: Bench, n_workers: int) -> None:
    store = bench.run(Punctual(bench.model), n_trials=1000, timeout=200, n_workers=n_workers)
    assert read_scores(store)


def test_a_failing_worker_does_not_end_what_others_do_well(bench: Bench) -> None:
    """Each trial that fails does so at once; as many in a row as one worker may fail say little of four."""
    n_bad = MAX_FAILURES_IN_A_ROW + 2

    def status(segment: Segment) -> SegmentStatus:
        return SegmentStatus.FAILED if segment.trial < n_bad else SegmentStatus.DONE

    records = bench.run(KnownWorker(bench.model, status), n_trials=12, n_workers=4).records()
    assert sum(r.outcome is Outcome.FAILED for r in records) == n_bad
    assert any(r.outcome is Outcome.COMPLETE for r in records)


def test_a_search_that_gives_up_leaves_nothing_running(bench: Bench) -> None:
    with pytest.raises(SearchError, match="trials in a row failed"):
        bench.run(KnownWorker(bench.model, lambda _: SegmentStatus.FAILED), n_trials=50, n_workers=4)
    outcomes = {record.outcome for record in bench.store().records()}
    assert outcomes <= {Outcome.FAILED, Outcome.INTERRUPTED, Outcome.INFEASIBLE}


def test_a_refusal_without_end_waits_for_what_runs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autopeft.searching.proposals.MAX_REFUSALS_IN_A_ROW", 3)
    with pytest.raises(BudgetError, match="in a row were refused"):
        bench.run(KnownWorker(bench.model), n_trials=100, n_workers=4, seed=2, limits={"trainable_params": 6_000})
    records = [r for r in bench.store().records() if r.outcome is not Outcome.INFEASIBLE]
    assert records, "some designs must have been trained before"
    assert {r.outcome for r in records} <= {Outcome.COMPLETE, Outcome.STOPPED}
    assert all(r.examples == FULL for r in records if r.outcome is Outcome.COMPLETE)


def test_workers_are_never_given_more_than_they_can_take(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    most = 0
    submit = SimulatedExecutor.submit

    def watched(self: SimulatedExecutor, segment: Segment) -> None:
        nonlocal most
        submit(self, segment)
        most = max(most, self.n_workers - self.free())

    monkeypatch.setattr(SimulatedExecutor, "submit", watched)
    bench.run(KnownWorker(bench.model), n_trials=16, n_workers=4)
    assert most == 4
