"""What every executor must do; a new one joins by being added to EXECUTORS."""

from collections.abc import Callable, Iterator

import pytest

from autopeft.executors.base import Executor
from autopeft.executors.local import LocalExecutor
from autopeft.executors.simulated import SimulatedExecutor
from autopeft.spec.design import Design
from autopeft.spec.study import RayOptions
from autopeft.spec.trial import Segment, SegmentResult, SegmentStatus


class Echo:
    """Returns what it was asked, and notes whether a stop was asked for."""

    def run(self, segment: Segment, should_stop: Callable[[], bool]) -> SegmentResult:
        status = SegmentStatus.INTERRUPTED if should_stop() else SegmentStatus.DONE
        return SegmentResult(trial=segment.trial, status=status, examples=segment.stop)


def make_echo(setup: None) -> Echo:
    return Echo()


Make = Callable[[Callable[[], bool]], Executor]


def on_ray(n_workers: int) -> Make:
    def make(stop: Callable[[], bool]) -> Executor:
        from autopeft.executors.ray import RayExecutor
        from autopeft.executors.ray_cluster import RayCluster

        return RayExecutor(RayCluster(RayOptions(cpus_per_worker=1), n_workers=n_workers), make_echo, None, stop)

    return make


EXECUTORS: dict[str, Make] = {
    "local": lambda stop: LocalExecutor(Echo, stop),
    "simulated-1": lambda stop: SimulatedExecutor(Echo(), lambda s: s.stop, should_stop=stop),
    "simulated-3": lambda stop: SimulatedExecutor(Echo(), lambda s: s.stop, n_workers=3, should_stop=stop),
    "ray-1": on_ray(1),
    "ray-2": on_ray(2),
}


def segment(trial: int, stop: int = 10) -> Segment:
    return Segment(trial=trial, design=Design(), learning_rates={"head": 1e-3}, seed=0, stop=stop, full=100)


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.ray] * name.startswith("ray")) for name in EXECUTORS])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    if request.param.startswith("ray"):
        request.getfixturevalue("local_ray")
    made: list[Executor] = []

    def make_and_keep(stop: Callable[[], bool]) -> Executor:
        made.append(EXECUTORS[request.param](stop))
        return made[-1]

    yield make_and_keep
    for executor in made:
        executor.close()


def test_every_segment_comes_back_once(make: Make) -> None:
    executor = make(lambda: False)
    waiting, results = [segment(i, stop=5 + i % 3) for i in range(7)], []
    while waiting or executor.free() < executor.n_workers:
        while waiting and executor.free():
            executor.submit(waiting.pop())
        results += executor.wait()
    assert sorted(result.trial for result in results) == list(range(7))
    assert all(result.examples == 5 + result.trial % 3 for result in results)


def test_free_counts_workers_and_submitting_beyond_them_is_an_error(
    make: Make,
) -> None:
    executor = make(lambda: False)
    assert executor.free() == executor.n_workers
    for i in range(executor.n_workers):
        executor.submit(segment(i))
    assert executor.free() == 0
    with pytest.raises(RuntimeError, match="free worker"):
        executor.submit(segment(99))


def test_waiting_for_nothing_returns_at_once(make: Make) -> None:
    assert make(lambda: False).wait() == []


def test_a_request_to_stop_reaches_the_worker(make: Make) -> None:
    executor = make(lambda: True)
    executor.submit(segment(0))
    assert executor.wait()[0].status is SegmentStatus.INTERRUPTED


def test_the_clock_never_runs_backwards_and_closing_twice_is_fine(
    make: Make,
) -> None:
    executor = make(lambda: False)
    before = executor.now()
    executor.submit(segment(0))
    executor.wait()
    assert executor.now() >= before
    executor.close()
    executor.close()


def test_virtual_time_is_the_time_of_the_longest_worker() -> None:
    executor = SimulatedExecutor(Echo(), lambda s: s.stop, n_workers=2)
    for i, stop in enumerate((10, 4, 3)):
        while not executor.free():
            executor.wait()
        executor.submit(segment(i, stop=stop))
    while executor.wait():
        pass
    assert executor.now() == 10
