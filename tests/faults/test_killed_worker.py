"""A worker on Ray is killed, stands still or raises in the middle of a segment: what becomes of its trial."""

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import autopeft
from autopeft.executors import ray as on_ray
from autopeft.executors import remote
from autopeft.executors.ray import RayExecutor
from autopeft.executors.ray_cluster import RayCluster
from autopeft.spec.event import EventKind
from autopeft.spec.model import ModelSummary
from autopeft.spec.study import RayOptions
from autopeft.spec.trial import Outcome, Segment, SegmentResult
from autopeft.study.folder import StudyFolder
from tests.bench import KnownWorker
from tests.executors.remote_workers import UnpicklableError
from tests.faults.driver import complete, records, search

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

N_EPOCHS = 120


def fields(pid: int) -> list[str]:
    """Return what the system says of a process after its name: its state, its parent; empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def is_ours(pid: int) -> bool:
    while pid > 1 and pid != os.getpid():
        pid = int((fields(pid) or "00")[1])
    return pid == os.getpid()


def is_alive(pid: int) -> bool:
    return (fields(pid) or "Z")[0] not in "ZX"


def workers() -> list[int]:
    """Return the workers that run on this process's Ray."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue  # it has ended meanwhile
        if command.startswith(b"ray::SegmentActor") and is_ours(int(folder.name)):
            found.append(int(folder.name))
    return found


def test_a_trial_outlives_its_workers(study: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """One is killed after the first rung, when it trains on; the next, after the second, is there and says nothing."""
    monkeypatch.setattr(on_ray, "RayExecutor", partial(RayExecutor, hang_seconds=15.0))
    monkeypatch.setattr(remote, "SLOW_FACTOR", 0.0)
    events: list[autopeft.Event] = []
    signals, hit = [signal.SIGKILL, signal.SIGSTOP], list[int]()

    def on_event(event: autopeft.Event) -> None:
        events.append(event)
        if event.kind is EventKind.RUNG and signals:
            time.sleep(0.05)  # the next segment was sent out before this was told
            number = signals.pop(0)
            for pid in workers():
                os.kill(pid, number)
                hit.append(pid)

    result = autopeft.search(
        **{
            **study,
            "space": {"blocks": {"lora": {"rank": [1, 2, 4], "learning_rate": {"log": [1e-3, 3e-2]}}}},
            "training": {**study["training"], "epochs": N_EPOCHS},
            "early_stopping": {"rungs": [0.25, 0.5], "eta": 1.01},
            "yardstick": None,
            "n_trials": 1,
            "executor": {"type": "ray", "cpus_per_worker": 1},
        },
        callbacks=[on_event],
    )
    assert isinstance(result, autopeft.SearchResult)
    chosen = next(event.trial.number for event in events if event.kind is EventKind.RUNG)
    own = [event for event in events if event.trial.number == chosen]
    rung, lost = EventKind.RUNG, EventKind.RETRIED
    assert [event.kind for event in own] == [EventKind.STARTED, rung, lost, rung, lost, EventKind.FINISHED]
    assert [len(event.trial.rungs) for event in own] == [0, 1, 1, 2, 2, 2], "each rung once: nothing was begun anew"
    pids = [int(event.worker.partition("@")[0]) for event in own[1:]]
    killed, stopped, last = pids[0], pids[2], pids[4]
    assert pids == [killed, killed, stopped, stopped, last]
    assert hit == [killed, stopped], "each the only worker, in the middle of the trial"
    assert last not in hit
    for _ in range(100):
        if not is_alive(stopped):
            break
        time.sleep(0.1)
    assert not is_alive(stopped), "one that stands still must not keep its memory"
    trial = result.trial(chosen)
    assert (trial.outcome, trial.n_retries) == (Outcome.COMPLETE, 2)
    assert trial.measured.n_steps == N_EPOCHS * -(-120 // 16), "what the checkpoint held was not trained again"
    assert not any(t.outcome is Outcome.FAILED for t in result.state.trials)


class Raising(KnownWorker):
    """Raises, in the second trial, what cannot be pickled."""

    def run(self, segment: Segment, should_stop: Callable[[], bool]) -> SegmentResult:
        if segment.trial == 1:
            raise UnpicklableError
        return super().run(segment, should_stop)


def make_raising(model: ModelSummary) -> Raising:
    return Raising(model)


def test_an_exception_ends_its_trial_and_its_traceback_is_in_the_logs(tmp_path: Path, summary: ModelSummary) -> None:
    cluster = RayCluster(RayOptions(cpus_per_worker=1), n_workers=1)
    search(
        tmp_path / "study",
        summary,
        n_trials=6,
        make_executor=lambda should_stop: RayExecutor(cluster, make_raising, summary, should_stop),
    )
    trials = records(tmp_path / "study", summary)
    failed = [trial for trial in trials if trial.outcome is Outcome.FAILED]
    assert [trial.number for trial in failed] == [1]
    log = StudyFolder(tmp_path / "study").log(1)
    assert "such a thing cannot travel" in failed[0].reason
    assert str(log) in failed[0].reason
    said = log.read_text()
    assert said.startswith("Traceback")
    assert "raise UnpicklableError" in said
    assert not any(trial.outcome is Outcome.RUNNING for trial in trials)
    assert complete(trials)
