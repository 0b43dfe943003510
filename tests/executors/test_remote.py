"""Workers on a Ray that is only played: one that hangs, one that comes late and is refused, and a Ray that goes."""

import logging
import socket
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RaySystemError

from autopeft.errors import ExecutorError
from autopeft.executors import ray as ray_executor
from autopeft.executors import ray_cluster, remote
from autopeft.executors.actor import Place, Report
from autopeft.executors.ray import RayExecutor
from autopeft.executors.ray_cluster import RayCluster
from autopeft.executors.remote import BLIND_SECONDS, LOADING_FACTOR, SLOW_FACTOR, Job, RemoteWorker
from autopeft.executors.versions import versions
from autopeft.executors.worker_resources import WorkerResources
from autopeft.spec.design import Design
from autopeft.spec.study import RayOptions
from autopeft.spec.trial import Segment, SegmentResult, SegmentStatus

HERE, OTHER = versions(), {**versions(), "torch": "1.0"}


class Answer:
    """What an actor answers, once it has."""

    def __init__(self, value: Any = None) -> None:
        self.value = value


class PlayedRay:
    """Stands for Ray: actors start where and when the test says, and do each segment at once unless they hang."""

    def __init__(self) -> None:
        self.starts: list[Answer] = []
        self.options: list[Mapping[str, Any]] = []
        self.n_killed = 0
        self.hangs = False
        self.breaks = ""

    def remote(self, **_: Any) -> Callable[[Any], Any]:
        return lambda _: SimpleNamespace(options=self._options)

    def _options(self, **options: Any) -> Any:
        return SimpleNamespace(remote=lambda _: self.make(**options))

    def make(self, **options: Any) -> Any:
        self._call("make")
        self.options.append(options)
        self.starts.append(start := Answer())
        return SimpleNamespace(
            place=SimpleNamespace(remote=lambda _: start), run=SimpleNamespace(remote=lambda *job: self._run(job[0]))
        )

    def _run(self, segment: Segment) -> Answer:
        done = Report(result=SegmentResult(trial=segment.trial, status=SegmentStatus.DONE))
        return Answer(None if self.hangs else done)

    def put(self, value: Any) -> Any:
        return value

    def get(self, answer: Answer) -> Any:
        return answer.value

    def wait(self, answers: list[Answer], **_: Any) -> tuple[list[Answer], list[Answer]]:
        self._call("wait")
        return [answer for answer in answers if answer.value is not None], []

    def kill(self, _: Any) -> None:
        self._call("kill")
        self.n_killed += 1

    def _call(self, name: str) -> None:
        if self.breaks == name:
            raise RaySystemError("System error: Failed to connect to GCS.")


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> PlayedRay:
    played = PlayedRay()
    monkeypatch.setattr(remote, "ray", played)
    monkeypatch.setattr(ray_executor, "ray", played)
    return played


def place(node: str, found: Mapping[str, str] = HERE) -> Place:
    return Place(pid=7, name=f"7@host-{node}", node=node * 56, device=node, memory_bytes=None, versions=found)


def segment(trial: int = 3, **known: float) -> Segment:
    return Segment(trial=trial, design=Design(), learning_rates={}, seed=0, **known)  # type: ignore[arg-type]


def make_executor(n_workers: int = 1) -> RayExecutor:
    cluster = RayCluster(RayOptions(address="10.0.0.1:6379"), n_workers=n_workers)
    cluster._share, cluster._n_room = WorkerResources(n_cpus=1, n_gpus=0), n_workers
    return RayExecutor(cluster, lambda _: None, None, lambda: False)  # type: ignore[arg-type, return-value]


def run(executor: RayExecutor, trial: int = 0, **known: float) -> SegmentStatus:
    executor.submit(segment(trial, **known))
    (result,) = executor.wait()
    assert result.trial == trial
    return result.status


@pytest.mark.parametrize(
    ("known", "limit"),
    [
        ({}, BLIND_SECONDS),
        ({"expected_seconds": 500.0}, SLOW_FACTOR * 500.0),
        ({"expected_seconds": 1.0}, LOADING_FACTOR * 300.0),
        ({"deadline_seconds": 100.0}, 100.0 + LOADING_FACTOR * 300.0),
        ({"deadline_seconds": 1e5, "expected_seconds": 500.0}, SLOW_FACTOR * 500.0),
    ],
)
def test_a_worker_that_never_answers_is_given_up_whatever_is_known(
    played: PlayedRay, known: Mapping[str, float], limit: float
) -> None:
    played.hangs = True
    worker = RemoteWorker(played.make, lambda: (), 0.0)
    played.starts[0].value = place("a")
    worker.meet()
    worker.run(Job(segment=segment(**known), number=0, submitted=10.0), 10.0)
    assert worker.end(answered=False, now=10.0 + limit, patience_seconds=300.0) is None
    result = worker.end(answered=False, now=10.1 + limit, patience_seconds=300.0)
    assert result is not None
    assert (result.trial, result.status) == (3, SegmentStatus.LOST)
    assert "the worker hung" in result.error
    assert (len(played.starts), played.n_killed) == (2, 1), "another one takes its place"


def test_a_node_that_joins_late_with_other_versions_is_left_out(
    played: PlayedRay, caplog: pytest.LogCaptureFixture
) -> None:
    executor = make_executor(3)
    played.starts[0].value = place("a")
    assert run(executor) is SegmentStatus.DONE
    for late in played.starts[1:3]:
        late.value = place("b", OTHER)
    with caplog.at_level(logging.WARNING, "autopeft"):
        assert run(executor, 1) is SegmentStatus.DONE
    (said,) = [record.getMessage() for record in caplog.records]
    assert f"the node host-b ({'b' * 8}) has torch 1.0; install the same" in said
    assert said.endswith("no worker runs there until it joins again")
    assert played.n_killed == 2
    refused, again = [options.get("label_selector") for options in played.options][1:4:2]
    assert (refused, again) == (None, {"ray.io/node-id": f"!in({'b' * 56})"}), "its place is kept for another node"
    assert executor.free() == 1
    played.starts[4].value = place("c")
    assert run(executor, 2) is SegmentStatus.DONE
    assert executor.free() == 2


@pytest.mark.parametrize("nodes", ["b", "ab"])
def test_one_that_is_there_at_the_start_is_an_error(played: PlayedRay, nodes: str) -> None:
    executor = make_executor(len(nodes))
    for start, node in zip(played.starts, nodes, strict=True):
        start.value = place(node, OTHER if node == "b" else HERE)
    with pytest.raises(ExecutorError, match=r"the node host-b \(bbbbbbbb\) has torch 1\.0; install the same"):
        run(executor)


@pytest.mark.parametrize(("seconds", "is_lost"), [(0.0, True), (60.0, False)])
def test_a_head_node_that_is_away_for_long_ends_it_too(
    played: PlayedRay, monkeypatch: pytest.MonkeyPatch, seconds: float, is_lost: bool
) -> None:
    """What it runs goes on without it; after a minute Ray would end this process."""
    monkeypatch.setattr(ray_cluster, "LOST_SECONDS", seconds)
    monkeypatch.setattr(ray_cluster, "_CHECK_SECONDS", 0.0)
    executor = make_executor()
    with socket.create_server(("127.0.0.1", 0)) as head:
        executor._cluster._head = address = f"127.0.0.1:{head.getsockname()[1]}"
        played.starts[0].value = place("a")
        assert run(executor) is SegmentStatus.DONE
    if is_lost:
        lost = rf"the Ray at '10\.0\.0\.1:6379' must stay reachable, but nothing has answered at {address} for \d+ s"
        with pytest.raises(ExecutorError, match=lost):
            [run(executor, trial) for trial in range(3)]
    else:
        assert [run(executor, trial) for trial in range(3)] == [SegmentStatus.DONE] * 3
        assert executor._cluster._away_since is not None


@pytest.mark.parametrize("call", ["make", "wait", "kill"])
def test_a_ray_that_goes_ends_the_search_with_a_way_on(played: PlayedRay, call: str) -> None:
    executor = make_executor()
    played.starts[0].value = place("a")
    assert run(executor) is SegmentStatus.DONE
    played.hangs, played.breaks = True, call
    lost = r"the Ray at '10\.0\.0\.1:6379' must stay reachable, but .*to GCS; the same command resumes the study$"
    executor._hang_seconds = 0.0  # what runs is taken to hang at once, and its worker is replaced
    with pytest.raises(ExecutorError, match=lost):
        run(executor, expected_seconds=1e-9)
    executor.close()
    played.breaks = "make"
    with pytest.raises(ExecutorError, match=lost):
        make_executor()
