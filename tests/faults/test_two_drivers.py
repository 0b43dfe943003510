"""Two drivers at once on one folder: the second is told who holds it, and a killed one holds nothing."""

import signal
from pathlib import Path

import pytest

from autopeft.errors import StudyLockedError
from autopeft.spec.model import ModelSummary
from tests.faults.driver import check_whole, kill, search, start, wait_for
from tests.faults.test_signals import Deaf


def test_a_second_driver_is_refused_until_the_first_is_gone(tmp_path: Path, summary: ModelSummary) -> None:
    path, sign = tmp_path / "study", tmp_path / "sign"
    first = start(path, summary, n_trials=6, worker=Deaf(summary, sign))
    wait_for(sign.is_file)
    before = (path / "study.journal").read_bytes()
    with pytest.raises(StudyLockedError, match=rf"process {first.pid} .*wait for it"):
        search(path, summary, n_trials=6)
    assert (path / "study.journal").read_bytes() == before
    kill(first, signal.SIGKILL)
    first.join()
    search(path, summary, n_trials=6)
    check_whole(path, summary, n_trials=6)


def test_so_is_one_at_the_same_address(tmp_path: Path, summary: ModelSummary) -> None:
    location, sign = f"file://{tmp_path}/store/study", tmp_path / "sign"
    first = start(location, summary, n_trials=6, worker=Deaf(summary, sign), work_dir=str(tmp_path / "a"))
    wait_for(sign.is_file)
    kill(first, signal.SIGKILL)
    first.join()
    assert (tmp_path / "store" / "study" / "lock.json").is_file()
    search(location, summary, n_trials=6, work_dir=str(tmp_path / "b"))  # its process is gone: no need to wait
    check_whole(tmp_path / "b" / "study", summary, n_trials=6)
