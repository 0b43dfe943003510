"""The time of a search: what is left of it, and an executor that has nothing to wait for."""

import pytest

from autopeft.executors.simulated import SimulatedExecutor
from autopeft.searching import clock
from autopeft.searching.clock import next_results
from autopeft.spec.trial import Outcome, SegmentResult
from tests.bench import Bench, KnownWorker


class Away:
    """Makes simulated workers be away, without anything that says when they come back, until somebody has slept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.n_asked = self.n_slept = 0
        free, wait = SimulatedExecutor.free, SimulatedExecutor.wait

        def count() -> None:
            self.n_asked += 1
            assert self.n_asked < 1000, "the search asks again and again"

        def none_is_free(executor: SimulatedExecutor) -> int:
            count()
            return free(executor) if self.n_slept >= 3 else 0

        def nothing_ends(executor: SimulatedExecutor) -> list[SegmentResult]:
            count()
            return wait(executor) if self.n_slept >= 3 else []

        def sleep(seconds: float) -> None:
            assert seconds == clock.IDLE_SECONDS > 0
            self.n_slept += 1

        monkeypatch.setattr(SimulatedExecutor, "free", none_is_free)
        monkeypatch.setattr(SimulatedExecutor, "wait", nothing_ends)
        monkeypatch.setattr("autopeft.searching.clock.time.sleep", sleep)


def test_a_search_does_not_spin_while_no_worker_is_there(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    away = Away(monkeypatch)
    records = bench.run(KnownWorker(bench.model), n_trials=4, halving=None, sampler="random").records()
    assert [r.outcome for r in records] == [Outcome.COMPLETE] * 4
    assert away.n_slept == 3


def test_the_final_check_does_not_spin_either(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.run(KnownWorker(bench.model), n_trials=4, halving=None, sampler="random", test=False)
    away = Away(monkeypatch)
    worker = KnownWorker(bench.model)
    bench.run(worker, n_trials=4, halving=None, sampler="random")
    assert {s.stage for s in worker.segments} == {"test"}
    assert away.n_slept == 3


def test_nobody_waits_where_a_worker_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autopeft.searching.clock.time.sleep", lambda _: pytest.fail("it slept"))
    executor = SimulatedExecutor(None, lambda _: 1.0)  # type: ignore[arg-type]
    assert next_results(executor) == []
