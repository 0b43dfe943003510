"""The lease of a study's folder across processes; what every lease does is in test_lease.py."""

import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from autopeft.errors import StudyLockedError
from autopeft.study.folder_lease import FolderPlace
from autopeft.study.lease import STALE_SECONDS, Lease
from autopeft.study.process import ProcessMark

HOLD = """
import sys, time
from pathlib import Path
from autopeft.study.folder_lease import FolderPlace
from autopeft.study.lease import Lease
lock = Lease(FolderPlace(Path(sys.argv[1])))
lock.acquire()
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture(params=["flock", "no flock"])
def path(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where a lock is, on a file system with locks and on one without."""

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    if request.param == "no flock":
        monkeypatch.setattr(fcntl, "flock", refuse)
    return tmp_path / ".lock"


def hold(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_who_holds_it_is_named_and_a_crash_frees_it(path: Path) -> None:
    other = hold(path)
    lock = Lease(FolderPlace(path))
    assert lock.is_held()
    with pytest.raises(StudyLockedError, match=rf"process {other.pid} on {re.escape(os.uname().nodename)}, since 20"):
        lock.acquire()
    os.kill(other.pid, signal.SIGSTOP)  # it hangs, and holds
    with pytest.raises(StudyLockedError):
        lock.acquire()
    os.kill(other.pid, signal.SIGKILL)
    assert other.stdout is not None
    other.stdout.read()  # returns when it is dead; nobody has waited for it yet
    lock.acquire()
    other.stdout.close()
    other.wait()
    assert json.loads(path.read_text())["pid"] == os.getpid()
    lock.release()
    assert not Lease(FolderPlace(path)).is_held()


def test_a_lock_of_another_host_is_taken_over_when_it_is_old(path: Path) -> None:
    mark = ProcessMark(host="gpu-7", pid=1, machine="another boot", started=5)
    path.write_text(json.dumps({**mark.to_dict(), "since": time.time() - 9000}))
    lock = Lease(FolderPlace(path))
    with pytest.raises(StudyLockedError, match=r"process 1 on gpu-7, .* can be taken over in \d+ s if it has died"):
        lock.acquire()
    old = time.time() - STALE_SECONDS - 1
    os.utime(path, (old, old))
    assert not lock.is_held()
    lock.acquire()
    lock.release()
