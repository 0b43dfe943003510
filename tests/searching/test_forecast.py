"""What is left of a search, and what is started first for it."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from autopeft.executors.simulated import SimulatedExecutor
from autopeft.searching.forecast import Expected, expected, pass_rates
from autopeft.searching.plan import Baseline
from autopeft.spec.cost import Measured
from autopeft.spec.design import Design
from autopeft.spec.event import Event, EventKind
from autopeft.spec.study import EarlyStopping
from autopeft.spec.trial import Outcome, Segment, SegmentResult
from tests.bench import FULL, Bench, KnownWorker, cost


class Timed(KnownWorker):
    """Says that a segment took what it takes on the virtual clock."""

    def run(self, segment: Segment, should_stop: Callable[[], bool]) -> SegmentResult:
        result = super().run(segment, should_stop)
        return replace(result, measured=Measured(train_seconds=(result.examples - segment.start) / 100, n_steps=1))


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[Segment]:
    """Return what is submitted to executors, in its order."""
    segments: list[Segment] = []
    submit = SimulatedExecutor.submit

    def watched(self: SimulatedExecutor, segment: Segment) -> None:
        segments.append(segment)
        submit(self, segment)

    monkeypatch.setattr(SimulatedExecutor, "submit", watched)
    return segments


def test_expected_training_is_that_of_a_thousand_designs() -> None:
    rules, rates = EarlyStopping(rungs=(0.2, 0.5), eta=5), (0.2, 0.2)
    # 1000 reach a fifth of the training, 200 the half and 40 the end.
    begun = expected(rules, rates=rates)
    assert begun.share == pytest.approx((1000 * 0.2 + 200 * 0.3 + 40 * 0.5) / 1000)
    assert begun.n_segments == pytest.approx((1000 + 200 + 40) / 1000)
    assert begun.full == pytest.approx(40 / 1000)
    scored = expected(rules, rates=rates, after=0)
    assert scored.share == pytest.approx((200 * 0.3 + 40 * 0.5) / 1000)
    assert scored.full == begun.full
    assert expected(rules, rates=rates, after=2) == Expected(share=0.0, n_segments=0.0, full=1.0)
    assert expected(None) == Expected(share=1.0, n_segments=1.0, full=1.0)


def test_the_share_that_passes_a_rung_follows_what_is_seen() -> None:
    rules = EarlyStopping(rungs=(0.2, 0.5), eta=4)
    few, many = pass_rates(rules), pass_rates(rules, [(100, 60), (0, 0)])
    assert few[0] == few[1] > 1 / 4, "strata round up, and some are promoted late"
    assert many[0] == pytest.approx(0.6, abs=0.03)
    assert many[1] == few[1]
    assert pass_rates(EarlyStopping(eta=1.1)) == [1.0, 1.0]
    assert pass_rates(None) == []


@pytest.mark.parametrize("n_workers", [1, 2])
def test_the_time_that_is_left_is_the_time_that_it_takes(bench: Bench, n_workers: int) -> None:
    events: list[Event] = []
    head = Baseline(name="head", design=Design(), learning_rates={"head": 1e-3})
    bench.run(
        Timed(bench.model),
        n_trials=7,
        n_workers=n_workers,
        halving=None,
        on_event=events.append,
        baselines=(head,),
        seconds_per_flop=FULL / 100 / 10**12,
    )
    assert events[0].kind is EventKind.STARTED
    # Of what happens at one time the last event has seen it all.
    ends = list({e.progress.elapsed_seconds: e.progress for e in events}.values())
    assert len(ends) == 1 + 8 / n_workers
    for progress in ends:
        left = ends[-1].elapsed_seconds - progress.elapsed_seconds
        assert progress.remaining_seconds == pytest.approx(left, rel=0.01)
    assert ends[-1].remaining_seconds == 0


def test_nothing_is_predicted_before_anything_was_timed(bench: Bench) -> None:
    events: list[Event] = []
    bench.run(Timed(bench.model), n_trials=2, on_event=events.append)
    assert events[0].progress.remaining_seconds is None
    assert events[-1].progress.remaining_seconds is not None


def test_several_workers_start_the_longest_first(bench: Bench, submitted: list[Segment]) -> None:
    bench.run(KnownWorker(bench.model), n_trials=8, n_workers=4, seconds_per_flop=1e-9, seed=1)
    first = [cost(segment.design, bench.model).train_flops for segment in submitted[:4]]
    assert first == sorted(first, reverse=True)
    assert [segment.trial for segment in submitted[:4]] != [0, 1, 2, 3], "they were proposed in another order"


def test_one_worker_takes_what_comes(bench: Bench, submitted: list[Segment]) -> None:
    bench.run(KnownWorker(bench.model), n_trials=16)
    plain, other = list(submitted), Bench(bench.folder.path.parent / "timed", bench.model)
    submitted.clear()
    other.run(KnownWorker(bench.model), n_trials=16, seconds_per_flop=1e-9)
    first, *others = submitted
    assert [replace(first, expected_seconds=None), *others] == plain, (
        "what was timed before only says how long it takes"
    )


def test_of_what_was_cut_short_the_longest_goes_on_first(bench: Bench, submitted: list[Segment]) -> None:
    worker = KnownWorker(bench.model)
    records = bench.run(
        worker, n_trials=4, n_workers=4, halving=None, should_stop=lambda: len(worker.segments) > 0
    ).records()
    assert [r.outcome for r in records] == [Outcome.INTERRUPTED] * 4
    submitted.clear()
    bench.run(KnownWorker(bench.model), n_trials=4, n_workers=2, halving=None, seconds_per_flop=1e-9)
    flops = [cost(segment.design, bench.model).train_flops for segment in submitted if segment.stage == "train"]
    assert flops == sorted(flops, reverse=True)
