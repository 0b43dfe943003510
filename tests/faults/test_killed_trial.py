"""A trial that has the whole search killed, as the kernel does where a design takes more memory than there is."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from autopeft.searching.trials import MAX_KILLS
from autopeft.spec.model import ModelSummary
from autopeft.spec.trial import Outcome, Segment, SegmentResult, SegmentStatus
from autopeft.study.folder import StudyFolder
from tests.bench import Bench, KnownWorker
from tests.faults.driver import check_whole, records, start


class Deadly(KnownWorker):
    """Has its process killed by the first design that it trains, so often at each of its segments."""

    def __init__(self, model: ModelSummary, notes: Path, n_times: int) -> None:
        super().__init__(model)
        self.notes, self.n_times = notes, n_times

    def run(self, segment: Segment, should_stop: Callable[[], bool]) -> SegmentResult:
        note = f"{segment.design.key}:{segment.start}"
        notes = self.notes.read_text().splitlines() if self.notes.is_file() else []
        is_deadly = not notes or notes[0].partition(":")[0] == segment.design.key
        if segment.stage == "train" and is_deadly and notes.count(note) < self.n_times:
            self.notes.write_text("\n".join([*notes, note]))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run(segment, should_stop)


def search_until_it_ends(path: Path, model: ModelSummary, worker: Deadly) -> int:
    """Give the same command again and again; return how often it was killed."""
    for n_kills in range(20):
        process = start(path, model, n_trials=5, worker=worker)
        process.join()
        if process.exitcode == 0:
            return n_kills
        assert process.exitcode == -signal.SIGKILL
    raise AssertionError("the same trial has every search killed")


def test_a_trial_that_has_every_search_killed_fails_and_others_have_their_turn(
    tmp_path: Path, summary: ModelSummary
) -> None:
    path = tmp_path / "study"
    assert search_until_it_ends(path, summary, Deadly(summary, tmp_path / "notes", 99)) == MAX_KILLS
    trials = check_whole(path, summary, n_trials=5)
    (failed,) = [trial for trial in trials if trial.outcome is Outcome.FAILED]
    assert (failed.number, failed.n_kills, failed.examples) == (2, MAX_KILLS, 0)
    assert failed.reason == (
        "the search was killed 3 times while it trained, and it gained no example in between: out of memory, perhaps"
    )
    assert [trial.reason for trial in trials[:2]] == ["the search was killed"] * 2
    assert [trial.n_kills for trial in trials[:2]] == [1, 2]


def test_a_trial_that_gains_between_kills_goes_on(tmp_path: Path, summary: ModelSummary) -> None:
    path = tmp_path / "study"
    assert search_until_it_ends(path, summary, Deadly(summary, tmp_path / "notes", 2)) >= 4
    trials = check_whole(path, summary, n_trials=5)
    assert {trial.outcome for trial in trials} == {Outcome.COMPLETE, Outcome.STOPPED, Outcome.INTERRUPTED}
    assert max(trial.n_kills for trial in trials) == 2
    assert all(trial.n_kills == 0 for trial in trials if trial.outcome is not Outcome.INTERRUPTED)


@pytest.mark.parametrize(("n_workers", "was_left", "n_kills"), [(1, True, 1), (1, False, 0), (3, True, 0)])
def test_only_a_kill_while_one_trial_trains_alone_counts(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, n_workers: int, was_left: bool, n_kills: int
) -> None:
    """An error that ends the search is no kill, and of several that trained nobody knows which one was why."""

    class Killed(BaseException):
        pass

    def status(_: Segment) -> SegmentStatus:
        raise Killed

    monkeypatch.setattr(StudyFolder, "was_left", was_left)
    with pytest.raises(Killed):
        bench.run(KnownWorker(bench.model, status), n_trials=4, n_workers=n_workers, halving=None, sampler="random")
    n_left = sum(record.outcome is Outcome.RUNNING for record in bench.store().records())
    assert n_left == n_workers
    trials = bench.run(KnownWorker(bench.model), n_trials=4, n_workers=n_workers, sampler="random").records()
    killed = [trial for trial in trials if trial.reason == "the search was killed"]
    assert [trial.n_kills for trial in killed] == [n_kills] * n_left


def test_a_folder_knows_whether_the_search_before_was_killed(tmp_path: Path, summary: ModelSummary) -> None:
    path = tmp_path / "study"
    process = start(path, summary, n_trials=2, worker=Deadly(summary, tmp_path / "notes", 1))
    process.join()
    assert StudyFolder(path).was_left is False, "nobody has looked yet"
    folder = StudyFolder(path)
    folder.acquire()
    assert folder.was_left
    folder.release()
    folder.acquire()
    assert not folder.was_left, "the last one let go of it"
    folder.release()
    assert [trial.outcome for trial in records(path, summary)] == [Outcome.RUNNING]
