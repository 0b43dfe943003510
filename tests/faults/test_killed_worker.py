"""A worker's process is killed in the middle of a segment: its trial goes on from its checkpoint in another one."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

import autopeft
from autopeft.spec.event import EventKind
from autopeft.spec.trial import Outcome

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def parent(pid: int) -> int:
    """Return the process that started another, 0 where that has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def is_ours(pid: int) -> bool:
    while pid > 1 and pid != os.getpid():
        pid = parent(pid)
    return pid == os.getpid()


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


def test_a_trial_outlives_its_worker(study: dict[str, Any]) -> None:
    killed: list[int] = []

    def kill() -> None:
        for pid in workers():
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    def on_event(event: autopeft.Event) -> None:
        if event.kind is EventKind.RUNG and not killed:
            timer = threading.Timer(0.15, kill)  # by then the next segment has been sent out
            timer.start()
            chosen.append(event.trial.number)

    chosen: list[int] = []
    result = autopeft.search(
        **{
            **study,
            "space": {"blocks": {"lora": {"rank": [1, 2, 4], "learning_rate": {"log": [1e-3, 3e-2]}}}},
            "training": {**study["training"], "epochs": 60},
            "early_stopping": {"rungs": [0.25], "eta": 1.01},
            "yardstick": None,
            "n_trials": 1,
            "executor": {"type": "ray", "cpus_per_worker": 1},
        },
        callbacks=[on_event],
    )
    assert isinstance(result, autopeft.SearchResult)
    assert killed, "a worker must have been killed"
    trial = result.trial(chosen[0])
    assert (trial.outcome, trial.n_retries) == (Outcome.COMPLETE, 1)
    n_steps = 60 * -(-120 // 16)
    assert trial.measured.n_steps == n_steps, "what the checkpoint held was not trained again"
    assert not any(t.outcome is Outcome.FAILED for t in result.state.trials)
    assert any(front.number == trial.number for front in result.front) or len(result.front) >= 1
