"""The search loop on workers that die, hang, run out of memory and answer nonsense, under a virtual clock."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from autopeft.errors import SearchError
from autopeft.executors.simulated import Faults, SimulatedExecutor
from autopeft.searching.segments import GUESS_FACTOR
from autopeft.searching.trials import MAX_RETRIES
from autopeft.spec.event import Event, EventKind
from autopeft.spec.trial import Outcome, Segment, SegmentResult, SegmentStatus, TrialRecord
from autopeft.study.front import pareto_front
from tests.bench import FULL, Bench, KnownWorker
from tests.conftest import started


class Killed(BaseException):
    """Ends the driver on the spot, as SIGKILL does: nothing below the loop catches it."""


class Losing(KnownWorker):
    """Loses the segments that `is_lost` says; the number of each trial's attempts so far is given."""

    def __init__(self, bench: Bench, is_lost: Callable[[Segment, int], bool]) -> None:
        super().__init__(bench.model)
        self.is_lost = is_lost
        self.attempts: Counter[int] = Counter()

    def run(self, segment: Segment, should_stop: Callable[[], bool]) -> SegmentResult:
        self.attempts[segment.trial] += 1
        if segment.stage == "train" and self.is_lost(segment, self.attempts[segment.trial]):
            self.segments.append(segment)
            return SegmentResult(
                trial=segment.trial, status=SegmentStatus.LOST, examples=segment.start, error="the worker died"
            )
        return super().run(segment, should_stop)


def check_whole(records: tuple[TrialRecord, ...], n_trials: int) -> None:
    """Nothing is lost, nothing is there twice, nothing was left behind."""
    assert [r.number for r in records] == list(range(len(records)))
    assert not [r for r in records if r.outcome is Outcome.RUNNING]
    begun = started(records)
    assert len(begun) == n_trials
    assert len({(r.design.key, *r.learning_rates.items()) for r in begun}) == n_trials, "no design is trained twice"
    continued = [r.continues for r in records if r.continues is not None]
    assert len(set(continued)) == len(continued), "no trial is continued twice"
    assert all(r.examples == FULL and r.scores for r in records if r.outcome is Outcome.COMPLETE)
    assert all(r.n_retries <= MAX_RETRIES for r in records)
    assert all(math.isfinite(score) for r in records for score in r.scores.values())


@pytest.mark.parametrize("seed", range(8))
def test_whatever_goes_wrong_no_trial_is_lost_and_none_is_there_twice(bench: Bench, seed: int) -> None:
    faults = Faults(dies=0.1, hangs=0.05, out_of_memory=0.03, not_finite=0.05, raises=0.05, seed=seed)
    worker = KnownWorker(bench.model)
    events: list[Event] = []
    complete = set()

    def note(event: Event) -> None:
        events.append(event)
        if event.kind is EventKind.FINISHED and event.trial.outcome is Outcome.COMPLETE:
            complete.add(event.trial.number)

    store = bench.run(
        worker, n_trials=24, n_workers=1 + seed % 6, sampler="random", seed=seed, faults=faults, on_event=note
    )
    records = store.records()
    check_whole(records, 24)
    assert {r.number for r in records if r.outcome is Outcome.COMPLETE} == complete
    happened = bench.executor.n_faults
    assert happened.total() > 0
    retried = {e.trial.number: e.trial.n_retries for e in events if e.kind is EventKind.RETRIED}
    for record in records:
        before = 0 if record.continues is None else records[record.continues].n_retries
        assert record.n_retries == retried.get(record.number, before)
        if "its worker was lost 3 times" in record.reason:
            assert (record.outcome, record.n_retries) == (Outcome.FAILED, MAX_RETRIES)


def test_a_lost_trial_goes_on_from_its_last_checkpoint(bench: Bench) -> None:
    """At its second rung each trial loses its worker once."""
    worker = Losing(bench, lambda segment, attempt: segment.start == FULL // 4 and attempt == 2)
    events: list[Event] = []
    records = bench.run(worker, n_trials=8, on_event=events.append).records()
    retried = [r for r in records if r.n_retries and r.continues is None]
    assert retried
    for record in retried:
        starts = [s.start for s in worker.segments if s.trial == record.number and s.stage == "train"]
        assert starts[:3] == [0, FULL // 4, FULL // 4]
        assert record.n_retries == 1
        assert record.reason.endswith("run again once, since its worker was lost")
        assert "the worker died" in bench.folder.log(record.number).read_text()
    said = [e.describe() for e in events if e.kind is EventKind.RETRIED]
    assert len(said) == len(retried)
    assert all("retried" in line and "retry 1 of 2): the worker died (see " in line for line in said)
    plain = Bench(bench.folder.path.parent / "plain", bench.model)
    undisturbed = plain.run(KnownWorker(bench.model), n_trials=8).records()
    assert [replace(r, n_retries=0, reason="") for r in records] == [replace(r, reason="") for r in undisturbed]


def test_a_trial_that_loses_every_worker_fails_and_says_so(bench: Bench) -> None:
    worker = Losing(bench, lambda segment, attempt: segment.trial == 2)
    records = bench.run(worker, n_trials=8, halving=None, sampler="random").records()
    failed = [r for r in records if r.outcome is Outcome.FAILED]
    assert [r.number for r in failed] == [2]
    assert failed[0].n_retries == MAX_RETRIES
    assert failed[0].reason.startswith("its worker was lost 3 times, the last time with: the worker died (see ")
    assert worker.attempts[2] == 3
    assert sum(r.outcome is Outcome.COMPLETE for r in records) == 7


def test_lost_workers_are_no_failures_of_designs_until_trials_end_by_them(bench: Bench) -> None:
    """Two losses for every trial end nothing; three for every one are no accident any more."""
    records = bench.run(
        Losing(bench, lambda segment, attempt: attempt <= 2), n_trials=10, halving=None, sampler="random"
    ).records()
    assert Counter(r.outcome for r in records) == {Outcome.COMPLETE: 10}
    other = Bench(bench.folder.path.parent / "other", bench.model)
    with pytest.raises(SearchError, match=r"5 trials in a row failed.*its worker was lost 3 times"):
        other.run(Losing(bench, lambda segment, attempt: True), n_trials=10, sampler="random")


def test_retries_are_counted_over_a_restart(bench: Bench) -> None:
    """One loss, then the driver is killed; the trial that goes on has one retry left."""

    def lose_then_kill(segment: Segment, attempt: int) -> bool:
        if attempt == 2:
            raise Killed
        return True

    with pytest.raises(Killed):
        bench.run(Losing(bench, lose_then_kill), n_trials=3, sampler="random")
    (running,) = bench.store().records()
    assert (running.outcome, running.n_retries) == (Outcome.RUNNING, 1)
    assert "retry 1 of 2" in running.reason
    worker = Losing(bench, lambda segment, attempt: segment.trial == 1)
    records = bench.run(worker, n_trials=3, sampler="random", seed=1).records()
    assert records[1].continues == 0
    assert (records[1].outcome, records[1].n_retries) == (Outcome.FAILED, MAX_RETRIES)
    assert worker.attempts[1] == 2
    check_whole(records, 3)


@pytest.mark.parametrize("seed", range(3))
def test_a_driver_that_is_killed_among_faults_goes_on(bench: Bench, seed: int) -> None:
    faults = Faults(dies=0.15, hangs=0.05, raises=0.03, seed=seed)
    n_before: list[dict[int, TrialRecord]] = []
    for attempt in range(2):
        worker = KnownWorker(bench.model)

        def killed(_: Segment, worker: KnownWorker = worker, at: int = 5 + 3 * seed + 2 * attempt) -> SegmentStatus:
            if len(worker.segments) == at:
                raise Killed
            return SegmentStatus.DONE

        worker.status = killed
        with pytest.raises(Killed):
            bench.run(worker, n_trials=40, n_workers=4, sampler="random", seed=seed + attempt, faults=faults)
        n_before.append({r.number: r for r in bench.store().records() if r.outcome is Outcome.COMPLETE})
    records = bench.run(
        KnownWorker(bench.model), n_trials=40, n_workers=4, sampler="random", seed=seed + 2, faults=faults
    ).records()
    check_whole(records, 40)
    for complete in n_before:
        assert {number: records[number] for number in complete} == complete
    assert pareto_front(records, bench.objectives)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_are_no_numbers_fail_the_trial_and_teach_no_one(bench: Bench, value: float) -> None:
    class Odd(KnownWorker):
        def run(self, segment: Segment, should_stop: Callable[[], bool]) -> SegmentResult:
            result = super().run(segment, should_stop)
            if segment.trial == 1:
                return replace(result, scores={"accuracy": value})
            if segment.trial == 3 and segment.stop == FULL:
                return replace(result, scores={**result.scores, "loss": value})
            return replace(result, standard_errors={"accuracy": value})

    records = bench.run(Odd(bench.model), n_trials=5, halving=None).records()
    assert Counter(r.outcome for r in records) == {Outcome.COMPLETE: 3, Outcome.FAILED: 2}
    assert records[1].reason == f"a score was not finite: accuracy={value}"
    assert records[3].reason == f"a score was not finite: loss={value}"
    assert all(r.standard_errors == {} for r in records), "JSON has no such numbers, and a dashboard reads them"
    assert not {1, 3} & {r.number for r in pareto_front(records, bench.objectives)}
    text = bench.folder.journal.read_text()
    assert "NaN" not in text
    assert "Infinity" not in text


def test_a_smaller_cluster_goes_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that are away are not waited for, and what they ran goes to those that are there."""
    n_free: list[int] = []
    submit = SimulatedExecutor.submit

    def watched(self: SimulatedExecutor, segment: Segment) -> None:
        n_free.append(self.free())
        submit(self, segment)

    monkeypatch.setattr(SimulatedExecutor, "submit", watched)
    faults = Faults(dies=0.3, away_seconds=10_000, seed=1)
    records = bench.run(
        KnownWorker(bench.model), n_trials=12, n_workers=3, sampler="random", halving=None, faults=faults
    ).records()
    check_whole(records, 12)
    assert min(n_free) >= 1
    assert bench.clock > 10_000, "in the end all were away, and one was waited for"


def test_workers_are_told_what_a_segment_needs(bench: Bench) -> None:
    worker = KnownWorker(bench.model)
    bench.run(worker, n_trials=6, halving=None, seconds_per_flop=1e-9, n_validation=1000, sampler="random")
    records = {r.number: r for r in bench.store().records()}
    for segment in worker.segments:
        assert segment.memory_bytes == records[segment.trial].estimate.peak_memory, "nothing was measured"
    first, *others = [s for s in worker.segments if s.stage == "train"]
    estimate = records[first.trial].estimate
    guess = 1e-9 * (estimate.train_flops + 1000 * estimate.inference_flops)
    assert first.expected_seconds == pytest.approx(GUESS_FACTOR * guess), "a worker that hangs at once is noticed too"
    assert [s.expected_seconds for s in others] == pytest.approx([1.0 + 0.1] * len(others), rel=0.01)


def test_where_no_step_was_timed_the_first_segment_is_expected_to_take_any_time(bench: Bench) -> None:
    worker = KnownWorker(bench.model)
    bench.run(worker, n_trials=2, halving=None, n_validation=1000, sampler="random")
    first, second = [s for s in worker.segments if s.stage == "train"]
    assert first.expected_seconds is None
    assert second.expected_seconds == pytest.approx(1.1, rel=0.01)
