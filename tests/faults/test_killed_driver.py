"""The driver's process dies (SIGKILL): what is in the record stays, and the next search goes on."""

import random
import time
from pathlib import Path

import pytest

from autopeft.spec.model import ModelSummary
from autopeft.study.front import pareto_front
from tests.bench import Bench
from tests.faults.driver import check_whole, complete, kill, records, start, wait_for_size

N_TRIALS = 60


@pytest.mark.slow
def test_killed_twenty_times_at_random_moments(tmp_path: Path, summary: ModelSummary) -> None:
    path, moments = tmp_path / "killed", random.Random(7)
    journal = path / "study.journal"
    left = b""
    for _ in range(20):
        process = start(path, summary, n_trials=N_TRIALS)
        before = journal.stat().st_size if journal.is_file() else 0
        # At any moment: after an amount of writing, since how long anything takes is the machine's business.
        amount = before + moments.randrange(1, 10_000)
        wait_for_size(process, journal, amount)
        time.sleep(moments.random() * 0.01)
        assert process.is_alive(), "the study must be long enough to be killed twenty times"
        kill(process)
        process.join()
        assert process.exitcode == -9
        content = journal.read_bytes()
        assert content.startswith(left), "what a search before it had written"
        left = content[: content.rfind(b"\n") + 1]
    process = start(path, summary, n_trials=N_TRIALS)
    process.join()
    assert process.exitcode == 0
    assert journal.read_bytes().startswith(left)
    trials = check_whole(path, summary, n_trials=N_TRIALS)
    assert any(t.reason == "the search was killed" for t in trials)

    process = start(tmp_path / "whole", summary, n_trials=N_TRIALS)
    process.join()
    whole = check_whole(tmp_path / "whole", summary, n_trials=N_TRIALS)
    objectives = Bench(path, summary).objectives
    fronts = [pareto_front(found, objectives) for found in (trials, whole)]
    assert len(fronts[0]) >= len(fronts[1]) / 2
    best = [max(trial.scores["accuracy"] for trial in front) for front in fronts]
    assert abs(best[0] - best[1]) < 0.02


def test_what_is_complete_is_never_touched_again(tmp_path: Path, summary: ModelSummary) -> None:
    path = tmp_path / "killed"
    done: dict[int, object] = {}
    for _ in range(4):
        process = start(path, summary, n_trials=20)
        wanted = len(done) + 1
        while process.is_alive() and _n_complete(path, summary) < wanted:
            time.sleep(0.002)
        kill(process)
        process.join()
        now = complete(records(path, summary))
        assert {number: now[number] for number in done} == done
        done = dict(now)
    process = start(path, summary, n_trials=20)
    process.join()
    now = complete(check_whole(path, summary, n_trials=20))
    assert {number: now[number] for number in done} == done


def _n_complete(path: Path, summary: ModelSummary) -> int:
    try:
        return len(complete(records(path, summary)))
    except (KeyError, FileNotFoundError):  # no study yet
        return 0
