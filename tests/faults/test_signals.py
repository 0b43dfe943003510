"""Ctrl-C once and twice, and SIGTERM with a grace period, sent to a process that searches."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from autopeft.interruption import TERMINATED
from autopeft.spec.model import ModelSummary
from autopeft.spec.trial import Outcome, Segment, SegmentResult
from tests.bench import KnownWorker
from tests.faults.driver import Steady, check_whole, complete, kill, records, start, wait_for

N_TRIALS = 6


class Deaf(KnownWorker):
    """In its sixth segment it does not end when it is asked to, but says that it was: a step that takes for ever."""

    def __init__(self, model: ModelSummary, sign: Path) -> None:
        super().__init__(model)
        self.sign = sign

    def run(self, segment: Segment, should_stop: Callable[[], bool]) -> SegmentResult:
        if len(self.segments) == 5:
            self.sign.touch()
            wait_for(should_stop)
            self.sign.with_name("asked").touch()
            time.sleep(600)
        return super().run(segment, lambda: False)


class Waiting(Deaf):
    """In its sixth segment it waits until it is asked to end."""

    def run(self, segment: Segment, should_stop: Callable[[], bool]) -> SegmentResult:
        if len(self.segments) == 5:
            self.sign.touch()
            while not should_stop():
                time.sleep(0.005)
        return KnownWorker.run(self, segment, should_stop)


def check_resumes(path: Path, summary: ModelSummary) -> None:
    """Check that the same search goes on, and that what was complete stays."""
    before = complete(records(path, summary))
    process = start(path, summary, n_trials=N_TRIALS, worker=Steady(summary))
    process.join()
    assert process.exitcode == 0
    after = complete(check_whole(path, summary, n_trials=N_TRIALS))
    assert {number: after[number] for number in before} == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_lets_what_runs_leave_a_checkpoint(
    tmp_path: Path, summary: ModelSummary, number: signal.Signals
) -> None:
    path, sign = tmp_path / "study", tmp_path / "sign"
    process = start(path, summary, n_trials=N_TRIALS, worker=Waiting(summary, sign))
    wait_for(sign.is_file)
    kill(process, number)
    process.join()
    assert process.exitcode == 0  # the command line makes 130 or 143 of it
    trials = records(path, summary)
    assert [t.outcome for t in trials].count(Outcome.INTERRUPTED) == 1
    assert not any(t.outcome is Outcome.RUNNING for t in trials)
    cut = next(t for t in trials if t.outcome is Outcome.INTERRUPTED)
    assert list((path / "checkpoints").glob(f"{cut.number}-{cut.examples}.*"))
    assert cut.reason == "stopped on request"
    check_resumes(path, summary)


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path, summary: ModelSummary) -> None:
    path, sign = tmp_path / "study", tmp_path / "sign"
    process = start(path, summary, n_trials=N_TRIALS, worker=Deaf(summary, sign))
    wait_for(sign.is_file)
    kill(process, signal.SIGINT)
    wait_for(sign.with_name("asked").is_file)
    assert process.is_alive(), "the first one waits for the step"
    kill(process, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 130
    check_resumes(path, summary)


def test_sigterm_ends_within_its_grace_whatever_runs(tmp_path: Path, summary: ModelSummary) -> None:
    path, sign = tmp_path / "study", tmp_path / "sign"
    process = start(path, summary, n_trials=N_TRIALS, worker=Deaf(summary, sign), grace_seconds=1.0)
    wait_for(sign.is_file)
    asked_at = time.monotonic()
    kill(process, signal.SIGTERM)
    wait_for(sign.with_name("asked").is_file)
    kill(process, signal.SIGTERM)  # schedulers repeat themselves: it is not a second request
    process.join(60)
    assert time.monotonic() - asked_at >= 1.0
    assert process.exitcode == TERMINATED == 143
    check_resumes(path, summary)
