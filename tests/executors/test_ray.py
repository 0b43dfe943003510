"""What Ray adds to the contract: processes that die, hang and are asked to stop."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autopeft.errors import DataError, ExecutorError, StudyError
from autopeft.executors.ray import RayExecutor
from autopeft.executors.ray_cluster import RayCluster
from autopeft.spec.design import Design
from autopeft.spec.study import RayOptions
from autopeft.spec.trial import Segment, SegmentResult, SegmentStatus
from tests.executors.remote_workers import (
    break_down,
    make_from_file,
    make_nothing,
    make_sized,
    make_steady,
    make_troubled,
    refuse,
    threads_of_torch,
)

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

Make = Callable[..., RayExecutor]


def segment(trial: int, **changes: Any) -> Segment:
    return Segment(
        **{"trial": trial, "design": Design(), "learning_rates": {}, "seed": 0, "stop": 2, "full": 100, **changes}
    )


def cluster(n_workers: int = 1, **options: Any) -> RayCluster:
    return RayCluster(RayOptions(**{"cpus_per_worker": 1, **options}), n_workers=n_workers)


def is_alive(pid: int) -> bool:
    """Return whether a process lives: neither gone nor a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:  # it is gone; Linux says so in one of two ways
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(300):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("waited for half a minute")


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[RayExecutor] = []

    def make(n_workers: int = 1, **changes: Any) -> RayExecutor:
        settings = {"make_worker": make_troubled, "setup": None, "should_stop": lambda: False, **changes}
        made.append(RayExecutor(cluster(n_workers), **settings))
        return made[-1]

    yield make
    for executor in made:
        executor.close()


def run(executor: RayExecutor, *segments: Segment) -> dict[int, SegmentResult]:
    for each in segments:
        executor.submit(each)
    results: dict[int, SegmentResult] = {}
    while len(results) < len(segments):
        results |= {result.trial: result for result in executor.wait()}
    return results


def start(executor: RayExecutor) -> set[int]:
    """Wait until every worker has started; return their process ids."""
    while None in executor.pids:
        run(executor, *(segment(900 + i, stop=20) for i in range(executor.n_workers)))
    return {pid for pid in executor.pids if pid is not None}


def test_workers_are_processes_that_keep_what_they_hold(make: Make) -> None:
    executor = make(2)
    pids = start(executor)
    assert len(pids - {os.getpid()}) == 2
    first = run(executor, segment(0, stop=50), segment(1, stop=50))
    second = run(executor, segment(2, stop=50), segment(3, stop=50))
    counts: dict[float, list[float]] = {}
    for result in (*first.values(), *second.values()):
        counts.setdefault(result.scores["pid"], []).append(result.scores["n_segments"])
    assert counts.keys() == pids
    assert all(count == [count[0], count[0] + 1] for count in counts.values())
    executor.close()
    executor.close()
    wait_until(lambda: not any(is_alive(int(pid)) for pid in pids))
    assert executor.free() == 0


def test_arrays_travel_once_and_checkpoints_as_bytes(make: Make) -> None:
    data = np.arange(500_000, dtype=np.float64)
    executor = make(2, make_worker=make_steady, setup=data)
    checkpoint = os.urandom(300_000)
    results = run(executor, segment(0, checkpoint=checkpoint), segment(1))
    assert results[0].checkpoint == checkpoint
    assert {result.scores["sum"] for result in results.values()} == {data.sum()}
    assert {result.scores["writeable"] for result in results.values()} == {0.0}, (
        "workers share memory that none may change"
    )


def test_a_request_to_stop_reaches_a_running_worker(make: Make) -> None:
    stop = False
    executor = make(2, should_stop=lambda: stop)
    start(executor)
    for trial in (2, 3):
        executor.submit(segment(trial, stop=6000))
    time.sleep(0.5)
    stop = True
    results = executor.wait()
    while len(results) < 2:
        results += executor.wait()
    assert {result.status for result in results} == {SegmentStatus.INTERRUPTED}
    assert all(result.examples < 6000 for result in results)
    stop = False
    assert run(executor, segment(4))[4].status is SegmentStatus.DONE, "a request is meant for what runs"


@pytest.mark.parametrize(
    ("seed", "status", "says"),
    [
        (1, SegmentStatus.LOST, "process died"),
        (2, SegmentStatus.FAILED, "a worker must not raise"),
        (3, SegmentStatus.OUT_OF_MEMORY, ""),
        (5, SegmentStatus.OUT_OF_MEMORY, "Unable to allocate"),
        (6, SegmentStatus.FAILED, "such a thing cannot travel"),
    ],
)
def test_a_worker_that_breaks_is_replaced_and_others_are_not_harmed(
    make: Make, seed: int, status: SegmentStatus, says: str
) -> None:
    executor = make(2)
    before = start(executor)
    results = run(executor, segment(2, seed=seed, start=1), segment(3, stop=100))
    assert results[2].status is status
    assert says in (results[2].error.splitlines() or [""])[-1]
    assert results[3].status is SegmentStatus.DONE
    start(executor)
    after = run(executor, segment(4, stop=50), segment(5, stop=50))
    assert {result.status for result in after.values()} == {SegmentStatus.DONE}
    assert len(before & set(executor.pids)) == 1
    assert executor.free() == 2


def test_a_killed_worker_loses_its_segment_and_is_replaced(make: Make) -> None:
    executor = make(1)
    pid = int(run(executor, segment(0))[0].scores["pid"])
    executor.submit(segment(1, stop=6000, start=7))
    os.kill(pid, signal.SIGKILL)
    (result,) = executor.wait()
    assert (result.trial, result.status, result.examples) == (1, SegmentStatus.LOST, 7)
    assert f"process {pid}" in result.error
    assert result.worker == f"{pid}@{socket.gethostname()}"
    assert run(executor, segment(2))[2].scores["pid"] != pid


def test_a_worker_that_hangs_is_given_up_long_after_its_deadline(make: Make) -> None:
    executor = make(1, hang_seconds=1.0)
    pid = int(run(executor, segment(0))[0].scores["pid"])
    result = run(executor, segment(1, seed=4, deadline_seconds=0.5))[1]
    assert result.status is SegmentStatus.LOST
    assert "hung" in result.error
    wait_until(lambda: not is_alive(pid))
    assert run(executor, segment(2))[2].status is SegmentStatus.DONE


def test_without_a_deadline_the_expected_time_says_when_a_worker_hangs(make: Make) -> None:
    executor = make(1, hang_seconds=1.0)
    run(executor, segment(0))
    result = run(executor, segment(1, seed=4, expected_seconds=0.01))[1]
    assert (result.status, result.examples) == (SegmentStatus.LOST, 0)
    assert "hung" in result.error


def test_memory_is_promised_once_and_what_fits_nowhere_comes_back(make: Make) -> None:
    """Two workers on a node of 8 GiB: 512 MiB go to each process."""
    executor = make(2, make_worker=make_sized)
    start(executor)
    gib = 2**30
    results = run(executor, segment(0, stop=40, memory_bytes=5 * gib), segment(1, stop=40, memory_bytes=3 * gib))
    assert all(result.status is SegmentStatus.DONE for result in results.values())
    first, second = sorted(results.values(), key=lambda result: result.scores["began"])
    assert second.scores["began"] >= first.scores["ended"], "together they would need 8 GiB and two processes"
    results = run(executor, segment(2, stop=300, memory_bytes=4 * gib), segment(3, stop=300, memory_bytes=3 * gib))
    first, second = sorted(results.values(), key=lambda result: result.scores["began"])
    assert second.scores["began"] < first.scores["ended"], "together they fit"
    (refused,) = run(executor, segment(4, start=3, memory_bytes=20 * gib)).values()
    assert (refused.status, refused.examples) == (SegmentStatus.OUT_OF_MEMORY, 3)
    assert "fits no device of the cluster: needs 20.0 GiB, largest has 8.0 GiB" in refused.error


def test_while_one_waits_for_room_others_go_on_and_both_end(make: Make) -> None:
    executor = make(2, make_worker=make_sized)
    start(executor)
    executor.submit(segment(0, stop=100, memory_bytes=4 * 2**30))
    executor.submit(segment(1, memory_bytes=6 * 2**30))
    assert executor.free() == 0, "the node is kept clear for what waits"
    order = [result.trial for _ in range(2) for result in executor.wait()]
    assert order == [0, 1]
    assert executor.free() == 2


def test_the_time_that_a_worker_takes_to_start_counts(make: Make) -> None:
    deadline = run(make(1), segment(0, deadline_seconds=100.0))[0].scores["deadline"]
    assert 0 < deadline < 99.9


def test_workers_that_cannot_be_made_end_the_search(make: Make) -> None:
    executor = make(1, make_worker=make_nothing)
    executor.submit(segment(0))
    with pytest.raises(ExecutorError, match=r"3 in a row did not.*no worker can be made of this"):
        executor.wait()


def test_workers_that_cannot_be_made_any_more_are_waited_for_while_others_work(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What a worker reads goes away after two have started; one of them dies, and the search goes on with the other."""
    monkeypatch.setattr("autopeft.executors.ray.REST_SECONDS", 1.0)
    file = tmp_path / "needed"
    file.touch()
    executor = make(2, make_worker=make_from_file, setup=str(file))
    (killed, kept) = start(executor)
    file.unlink()
    os.kill(killed, signal.SIGKILL)
    results = run(executor, segment(0, stop=20), segment(1, stop=20)).values()
    assert {result.status for result in results} == {SegmentStatus.DONE, SegmentStatus.LOST}
    while "3 in a row did not, the last one with: " not in caplog.text:
        run(executor, segment(2, stop=20))
    assert "no worker can be made without its file; the next one is asked for in 1 s" in caplog.text
    assert set(executor.pids) == {kept, None}
    assert executor.free() == 1, "nobody counts on the one that rests"
    file.touch()
    while None in executor.pids:
        run(executor, segment(3, stop=20))
    assert kept in executor.pids


def test_a_node_that_is_left_out_is_asked_for_no_worker_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The only node; the first of two workers came up on it before it was left out."""
    n_met = 0

    def check(*_: Any, node: str) -> None:
        nonlocal n_met
        n_met += 1
        if n_met == 2:
            raise ExecutorError(f"{node} has other versions")

    monkeypatch.setattr("autopeft.executors.ray.check_versions", check)
    executor = make(2)
    executor._has_met = True
    while n_met < 2:
        run(executor, segment(0, stop=20))
    assert run(make(1), segment(1))[1].status is SegmentStatus.DONE, "there is room, and it was asked for later"
    assert run(executor, segment(2))[2].status is SegmentStatus.DONE
    assert (n_met, executor.pids.count(None), executor.free()) == (3, 1, 1)


def test_a_terminals_interrupt_does_not_reach_workers(make: Make) -> None:
    executor = make(1)
    pid = int(run(executor, segment(0))[0].scores["pid"])
    executor.submit(segment(1, stop=100))
    os.kill(pid, signal.SIGINT)
    assert executor.wait()[0].status is SegmentStatus.DONE
    assert executor.pids == (pid,)


@pytest.mark.parametrize("n_cpus", [1, 2])
def test_a_worker_has_as_many_threads_as_cores(n_cpus: int) -> None:
    assert cluster(cpus_per_worker=n_cpus).call(threads_of_torch) == (n_cpus, str(n_cpus))


def test_what_was_asked_for_is_held_against_what_is_there() -> None:
    assert cluster(n_workers=2, cpus_per_worker=None).n_threads == 1
    with pytest.raises(StudyError, match="n_workers=3"):
        _ = cluster(n_workers=3).share
    with pytest.raises(StudyError, match="gpus_per_worker"):
        _ = cluster(gpus_per_worker=1).share


def test_errors_of_a_call_come_back_as_what_they_are() -> None:
    with pytest.raises(DataError, match=r"^such is the data$"):
        cluster().call(refuse, "such is the data")
    with pytest.raises(ExecutorError, match="break_down failed on a worker of Ray: ZeroDivisionError: not of our"):
        cluster().call(break_down)
