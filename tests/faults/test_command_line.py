"""What a user sees of a fault: the real command line with a tiny model, its words and its exit code."""

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import autopeft
from autopeft.spec.trial import Outcome

pytestmark = pytest.mark.slow


def write(study: dict[str, Any], folder: Path, **changes: Any) -> Path:
    path = folder / "study.yaml"
    path.write_text(json.dumps({**study, **changes}))  # JSON is YAML
    return path


def start(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "autopeft", "search", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )


def wait_for(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    while process.poll() is None and not condition():
        time.sleep(0.01)


def size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def n_complete(folder: Path) -> int:
    events = folder / "search.jsonl"
    return events.read_text().count('"outcome": "complete"') if events.is_file() else 0


def test_killed_at_random_with_a_real_model(study: dict[str, Any], tmp_path: Path) -> None:
    path = write(study, tmp_path, n_trials=4, training={**study["training"], "epochs": 6})
    journal = Path(study["output_dir"]) / "tiny" / "study.journal"
    process = start(path)
    wait_for(process, lambda: n_complete(journal.parent) >= 1)
    amount = size(journal) + random.Random(1).randrange(6_000)
    wait_for(process, lambda: size(journal) >= amount)
    process.kill()
    process.communicate()
    assert process.returncode == -9
    known = [t for t in autopeft.open(journal.parent).state.trials if t.outcome is Outcome.COMPLETE]
    assert known, "or nothing is shown"
    result = autopeft.search(**{**study, "n_trials": 4, "training": {**study["training"], "epochs": 6}})
    assert isinstance(result, autopeft.SearchResult)
    trials = result.state.trials
    assert [t for t in trials if t in known] == known
    assert [t.number for t in trials] == list(range(len(trials)))
    assert not any(t.outcome in (Outcome.RUNNING, Outcome.FAILED) for t in trials)
    assert len(result.front) >= 1


def test_ctrl_c_twice(study: dict[str, Any], tmp_path: Path) -> None:
    path = write(study, tmp_path, training={**study["training"], "epochs": 40})
    with start(path) as process:
        wait_for(process, lambda: size(Path(study["output_dir"]) / "tiny" / "search.jsonl") > 0)
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        assert any(line.startswith("stopping: ") for line in process.stdout)
        process.send_signal(signal.SIGINT)
        output = process.stdout.read()
    assert process.returncode == 130, output
    assert output.splitlines()[-1] == f"interrupted; resume with: {shlex.join(['autopeft', 'search', str(path)])}"
    assert "stopped; " not in output, "it ended at once"


def test_a_full_disk(study: dict[str, Any], tmp_path: Path, small_disk: Path) -> None:
    """The report and its picture do not fit: 2 MiB are enough for the trials alone."""
    process = start(write(study, tmp_path, n_trials=1, output_dir=str(small_disk)))
    output, _ = process.communicate()
    assert process.returncode == 6, output
    assert "no space left on device" in output
    assert "the same command goes on" in " ".join(output.split())
    assert "Traceback" not in output
    assert "Logging error" not in output
    trials = autopeft.open(small_disk / "tiny").state.trials
    assert any(t.outcome is Outcome.COMPLETE for t in trials)
    assert not any(t.outcome is Outcome.RUNNING for t in trials)
