"""No room on the disk, for a checkpoint and for the journal: a real file system of 2 MiB, and a real limit."""

import os
import resource
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from autopeft.errors import StorageError
from autopeft.spec.model import ModelSummary
from autopeft.spec.trial import Segment, SegmentResult
from autopeft.study.folder import StudyFolder
from tests.bench import KnownWorker
from tests.faults.driver import FORK, Steady, check_whole, complete, records, search

N_TRIALS = 8


class Heavy(Steady):
    """Leaves checkpoints of 20 KiB, which begin with what the next segment expects."""

    seconds = 0.0

    def run(self, segment: Segment, should_stop: Callable[[], bool]) -> SegmentResult:
        if segment.checkpoint is not None:
            segment = replace(segment, checkpoint=segment.checkpoint.rstrip(b"\0"))
        result = super().run(segment, should_stop)
        return replace(result, checkpoint=result.checkpoint and result.checkpoint.ljust(20 * 1024, b"\0"))


def fill(path: Path, *, leave_bytes: int) -> Path:
    """Fill a disk but for some bytes."""
    ballast = path / "ballast"
    room = os.statvfs(path)
    with ballast.open("wb") as file:
        file.write(b"\0" * max(0, room.f_bavail * room.f_frsize - leave_bytes))
    return ballast


@pytest.mark.parametrize(("worker", "leave_bytes", "file"), [(Heavy, 60_000, "checkpoints"), (Steady, 20_000, "")])
def test_a_full_disk_ends_the_search_with_a_way_out_and_nothing_lost(
    small_disk: Path, summary: ModelSummary, worker: type[KnownWorker], leave_bytes: int, file: str
) -> None:
    path = small_disk / "study"
    search(path, summary, n_trials=1, worker=worker(summary))
    before = complete(records(path, summary))
    assert before
    ballast = fill(small_disk, leave_bytes=leave_bytes)
    with pytest.raises(StorageError, match=r"no space left on device; .*free space, .* the same command goes on") as e:
        search(path, summary, n_trials=N_TRIALS, worker=worker(summary))
    assert f"{path}/{file}" in str(e.value)
    assert not list(path.rglob("*.tmp"))
    assert path.joinpath("study.journal").read_bytes().endswith(b"\n")
    now = complete(records(path, summary))
    assert {number: now[number] for number in before} == before
    ballast.unlink()
    search(path, summary, n_trials=N_TRIALS, worker=worker(summary))
    after = complete(check_whole(path, summary, n_trials=N_TRIALS))
    assert {number: after[number] for number in now} == now


def limited(path: Path, summary: ModelSummary, n_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))
    try:
        search(path, summary, n_trials=N_TRIALS)
    except StorageError as error:
        sys.exit(6 if "study.journal must be written, but file too large" in str(error) else 1)


def test_a_journal_that_may_not_grow_is_left_whole(tmp_path: Path, summary: ModelSummary) -> None:
    """A limit cuts an append in its middle, where a full disk would."""
    path = tmp_path / "study"
    search(path, summary, n_trials=1)
    size = (path / "study.journal").stat().st_size
    for n_bytes in (1, 300, 5000):
        process = FORK.Process(target=limited, args=(path, summary, size + n_bytes))
        process.start()
        process.join()
        assert process.exitcode == 6
        content = (path / "study.journal").read_bytes()
        assert content.endswith(b"\n")
        assert len(content) <= size + n_bytes
        size = len(content)
        assert records(path, summary)
    search(path, summary, n_trials=N_TRIALS)
    check_whole(path, summary, n_trials=N_TRIALS)


def test_a_write_without_room_leaves_the_old_content_and_no_traces(small_disk: Path) -> None:
    folder = StudyFolder(small_disk / "study")
    file = folder.path / "front.json"
    folder.write(file, b"old")
    fill(small_disk, leave_bytes=8192)
    with pytest.raises(StorageError, match="must be written, but no space left"):
        folder.write(file, b"x" * 100_000)
    assert file.read_bytes() == b"old"
    assert [path.name for path in folder.path.iterdir()] == ["front.json"]
