"""What a user sees of a fault: the real command line with a tiny model, its words and its exit code."""

import json
import os
import random
import subprocess
import sys
import time
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


def wait_for(process: subprocess.Popen[str], journal: Path, n_bytes: int) -> None:
    while process.poll() is None and not (journal.is_file() and journal.stat().st_size >= n_bytes):
        time.sleep(0.01)


def test_killed_at_random_with_a_real_model(study: dict[str, Any], tmp_path: Path) -> None:
    path = write(study, tmp_path, n_trials=4, training={**study["training"], "epochs": 6})
    journal = Path(study["output_dir"]) / "tiny" / "study.journal"
    process = start(path)
    wait_for(process, journal, 6_000 + random.Random(1).randrange(12_000))
    process.kill()
    process.communicate()
    assert process.returncode == -9
    known = [t for t in autopeft.open(journal.parent).state.trials if t.outcome is Outcome.COMPLETE]
    result = autopeft.search(**{**study, "n_trials": 4, "training": {**study["training"], "epochs": 6}})
    assert isinstance(result, autopeft.SearchResult)
    trials = result.state.trials
    assert [t for t in trials if t in known] == known
    assert [t.number for t in trials] == list(range(len(trials)))
    assert not any(t.outcome in (Outcome.RUNNING, Outcome.FAILED) for t in trials)
    assert len(result.front) >= 1


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
