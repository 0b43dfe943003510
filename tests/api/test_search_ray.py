"""A search on Ray, end to end: the same study and the same answers, whoever trains."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

import autopeft
from autopeft.executors.ray import RayExecutor
from autopeft.executors.ray_cluster import RayCluster
from autopeft.spec.study import RayOptions
from autopeft.spec.trial import Outcome, Segment, SegmentResult, SegmentStatus, TrialRecord
from autopeft.study.folder import StudyFolder
from autopeft.tasks.prepare import prepare
from autopeft.training.worker import Worker, WorkerSetup, make_worker
from tests.conftest import started

pytestmark = pytest.mark.ray


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Train here as a worker of one core does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def search(study: dict[str, Any], **changes: Any) -> tuple[TrialRecord, ...]:
    result = autopeft.search(**{**study, **changes})
    assert isinstance(result, autopeft.SearchResult)
    assert set(result.state.tests) >= {t.number for t in result.front}
    assert len(result.front) >= 1
    return tuple(result.state.trials)


@pytest.mark.usefixtures("local_ray", "one_thread")
def test_what_ray_begins_this_process_goes_on_with_and_the_other_way_round(study: dict[str, Any]) -> None:
    first = search(study, executor="ray", n_workers=2, n_trials=3)
    assert {t.outcome for t in first} <= {Outcome.COMPLETE, Outcome.STOPPED, Outcome.INFEASIBLE}, first
    assert [t.baseline for t in first[:2]] == ["yardstick", "head"]
    second = search(study, n_trials=5)
    assert second[: len(first)] == first
    third = search(study, executor={"type": "ray", "cpus_per_worker": 1}, n_trials=6)
    assert third[: len(second)] == second
    assert len(started(third)) == 6
    assert {t.estimate.version for t in third} == {first[0].estimate.version}
    twins = [t for t in third if t.design == third[0].design]
    lines = (Path(study["output_dir"]) / "tiny" / "search.jsonl").read_text().splitlines()
    workers = {line["worker"] for line in map(json.loads, lines) if line["worker"]}
    assert len(workers) >= 2, "on Ray and here"
    assert f"{os.getpid()}@{socket.gethostname()}" in workers
    assert len({t.estimate.peak_memory for t in twins}) == 1, "a worker's threads are what memory is predicted for"


@pytest.mark.usefixtures("local_ray", "one_thread")
def test_a_worker_on_ray_trains_to_the_same_losses(study: dict[str, Any], tiny_bert: str) -> None:
    training = autopeft.Training(**study["training"], device="cpu")
    splits = autopeft.Splits(**study["splits"])
    data = prepare(study["data"], model=tiny_bert, columns=study["columns"], splits=splits, training=training)
    setup = WorkerSetup(model=tiny_bert, training=training, data=data)
    blocks = [{"lora": {"rank": 2}}, {"adapter": {"size": 4}}, {"prefix": {"length": 2}}]
    rates = {"lora": 5e-3, "adapter": 5e-3, "prefix": 1e-2, "head": 1e-2}
    designs = [autopeft.Design.from_dict({"quantization": base, "blocks": blocks}) for base in ("none", "nf4")]
    segments = [
        Segment(trial=i, design=design, learning_rates=rates, seed=3 + i, stop=64, full=120)
        for i, design in enumerate(designs)
    ]
    executor = RayExecutor(RayCluster(RayOptions(cpus_per_worker=1), n_workers=2), make_worker, setup, lambda: False)
    remote = {}
    try:
        for segment in segments:
            executor.submit(segment)
        while len(remote) < len(segments):
            remote |= {result.trial: result for result in executor.wait()}
    finally:
        executor.close()
    for segment in segments:
        here, there = Worker(setup).run(segment), remote[segment.trial]
        assert there.status is SegmentStatus.DONE, there.error
        assert there.losses == here.losses
        assert (there.scores, there.predictions) == (here.scores, here.predictions)
        assert there.checkpoint == here.checkpoint
        assert there.measured.peak_memory == here.measured.peak_memory


class Counting(Worker):
    """Says with each segment how many base models its process has loaded so far, and which it holds."""

    def run(self, segment: Segment, should_stop: Callable[[], bool] = lambda: False) -> SegmentResult:
        result = super().run(segment, should_stop)
        held = {f"held_{name}": float(n) for name, n in self.held_bytes().items()}
        return replace(result, scores={"n_loads": float(N_LOADS[0]), "pid": float(os.getpid()), **held})


N_LOADS = [0]


def make_counting(setup: WorkerSetup) -> Counting:
    """Count every load of a base model in this process, whoever asks for it."""
    from autopeft.training import worker

    load = worker.load_base

    def counted(*args: Any, **kwargs: Any) -> Any:
        N_LOADS[0] += 1
        return load(*args, **kwargs)

    worker.load_base = counted
    return Counting(setup)


@pytest.mark.usefixtures("local_ray")
def test_a_worker_loads_a_base_once_for_each_quantization(study: dict[str, Any], tiny_bert: str) -> None:
    training = autopeft.Training(**study["training"], device="cpu")
    splits = autopeft.Splits(**study["splits"])
    data = prepare(study["data"], model=tiny_bert, columns=study["columns"], splits=splits, training=training)
    setup = WorkerSetup(model=tiny_bert, training=training, data=data)
    executor = RayExecutor(RayCluster(RayOptions(cpus_per_worker=1), n_workers=1), make_counting, setup, lambda: False)
    n_loads, held = [], {}
    try:
        for trial, base in enumerate(["none", "none", "nf4", "none", "nf4"]):
            design = autopeft.Design.from_dict({"quantization": base, "blocks": [{"lora": {"rank": 1 + trial}}]})
            rates = {"lora": 1e-2, "head": 1e-2}
            executor.submit(Segment(trial=trial, design=design, learning_rates=rates, seed=0, stop=16, full=120))
            (result,) = executor.wait()
            assert result.status is SegmentStatus.DONE, result.error
            n_loads.append(result.scores["n_loads"])
            held = {name: n for name, n in result.scores.items() if name.startswith("held")}
    finally:
        executor.close()
    assert n_loads == [1, 1, 2, 2, 2]
    assert 0 < held["held_nf4"] < held["held_none"]


def processes_of_ray(session: int) -> list[str]:
    """Return the command lines of living processes of a session that belong to a Ray."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, group_session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # it has ended meanwhile
        if int(group_session) == session and state != "Z" and "ray" in command:
            found.append(command)
    return found


def test_an_interrupt_ends_a_search_on_its_own_ray_cleanly_and_quietly(study: dict[str, Any], tmp_path: Path) -> None:
    study = {**study, "training": {**study["training"], "epochs": 40}, "n_trials": 60, "early_stopping": "off"}
    study |= {"executor": {"type": "ray", "cpus_per_worker": 1}, "n_workers": 2}
    path = tmp_path / "study.yaml"
    path.write_text(json.dumps(study))
    journal = Path(study["output_dir"]) / "tiny" / "study.journal"
    process = subprocess.Popen(
        [sys.executable, "-m", "autopeft", "search", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        start_new_session=True,
    )
    for _ in range(3000):
        if process.poll() is not None or (journal.is_file() and journal.read_bytes().count(b'"op_code":4') >= 3):
            break
        time.sleep(0.1)
    else:
        process.kill()
        raise AssertionError("no three trials in five minutes")
    assert processes_of_ray(process.pid)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert f"resume with: autopeft search {path}" in output
    assert not [line for line in output.splitlines() if "ray" in line.lower().replace("array", "")], output
    trials = autopeft.open(journal.parent).state.trials
    assert not any(t.outcome in (Outcome.RUNNING, Outcome.FAILED) for t in trials)
    cut_short = [t for t in trials if t.outcome is Outcome.INTERRUPTED]
    assert 1 <= len(cut_short) <= 2
    assert all(StudyFolder(journal.parent).checkpoints.files(t.number) for t in cut_short if t.examples)
    for _ in range(600):
        if not processes_of_ray(process.pid):
            break
        time.sleep(0.1)
    assert not processes_of_ray(process.pid)


def is_busy(raylet: int) -> bool:
    """Return whether a worker of the node whose raylet this is runs a segment."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            title = (folder / "cmdline").read_bytes()
        except OSError:
            continue  # it has ended meanwhile
        if parent == raylet and title.startswith(b"ray::SegmentActor.run"):
            return True
    return False


def test_a_search_goes_on_when_a_node_leaves_in_the_middle_of_a_segment(study: dict[str, Any], tmp_path: Path) -> None:
    """Two nodes of one worker each; one is killed while both train. What it trained goes on elsewhere."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    study = {**study, "training": {**study["training"], "epochs": 20}, "n_trials": 3}
    study |= {"executor": {"type": "ray", "address": cluster.address, "workers": 2, "cpus_per_worker": 1}}
    path = tmp_path / "study.yaml"
    path.write_text(json.dumps(study))
    journal = Path(study["output_dir"]) / "tiny" / "study.journal"
    process = None
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        process = subprocess.Popen(
            [sys.executable, "-m", "autopeft", "search", str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        raylet = nodes[1].all_processes["raylet"][0].process.pid
        for _ in range(15_000):
            if process.poll() is not None or is_busy(raylet):
                break
            time.sleep(0.02)
        assert process.poll() is None, process.communicate()[0]
        cluster.remove_node(nodes[1], allow_graceful=False)
        output, _ = process.communicate(timeout=280)
    finally:
        if process is not None:
            process.kill()
        cluster.shutdown()
    assert process.returncode == 0, output
    trials = autopeft.open(journal.parent).state.trials
    assert len(started(trials)) == 3
    assert not any(t.outcome in (Outcome.RUNNING, Outcome.FAILED, Outcome.OUT_OF_MEMORY) for t in trials)
    assert sum(t.n_retries for t in trials) == 1, "one segment ran on the node, and was run again"


def test_a_node_with_another_version_is_refused_before_it_trains_anything(
    study: dict[str, Any], tmp_path: Path
) -> None:
    """The node finds what says that it has another peft before it finds the one that is installed."""
    from ray.cluster_utils import Cluster

    other = tmp_path / "site" / "peft-9.9.9.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: peft\nVersion: 9.9.9\n")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    study |= {"executor": {"type": "ray", "address": cluster.address, "workers": 1, "cpus_per_worker": 1}}
    path = tmp_path / "study.yaml"
    path.write_text(json.dumps(study))
    with (tmp_path / "node.log").open("wb") as log:
        node = subprocess.Popen(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1"),
                f"--address={cluster.address}",
            ],
            env={**environment, "PYTHONPATH": str(tmp_path / "site")},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "autopeft", "search", str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
    finally:
        node.terminate()
        node.wait()
        cluster.shutdown()
    assert ended.returncode == 2, ended.stdout
    here = f"here is peft {version('peft')}, and a worker has peft 9.9.9; install the same on every node"
    assert here in " ".join(ended.stdout.split())
    assert not (Path(study["output_dir"]) / "tiny" / "study.journal").exists()
