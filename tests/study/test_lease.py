"""Leases: one contract for every place that keeps one."""

import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

from autopeft.errors import StudyLockedError
from autopeft.study import lease as module
from autopeft.study.address import Address
from autopeft.study.folder_lease import FolderPlace
from autopeft.study.lease import Lease, Mark, Place
from autopeft.study.process import ProcessMark
from autopeft.study.remote_copy import LOCK, AddressPlace

ELSEWHERE = ProcessMark(host="gpu-7", pid=1, machine="another boot", started=5)


class Kept:
    """A place, as many objects of it as are asked for, and its content."""

    def __init__(self, make: Callable[[], Place], write: Callable[[bytes, float], None]) -> None:
        self.make, self.write = make, write


@pytest.fixture(params=["folder", "folder without locks", "object", "folder at an address"])
def kept(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    monkeypatch.setattr(AddressPlace, "settle_seconds", 0.05)

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    if request.param.startswith("folder") and not request.param.endswith("address"):
        if request.param == "folder without locks":
            monkeypatch.setattr(fcntl, "flock", refuse)
        path = tmp_path / ".lock"

        def write(content: bytes, age_seconds: float) -> None:
            path.write_bytes(content)
            os.utime(path, (time.time() - age_seconds,) * 2)

        return Kept(lambda: FolderPlace(path), write)
    uri = f"memory://{tmp_path}/study" if request.param == "object" else f"file://{tmp_path}/store/study"

    def put(content: bytes, _age_seconds: float) -> None:
        files, root = fsspec.core.url_to_fs(uri)
        files.makedirs(root, exist_ok=True)
        files.pipe_file(f"{root}/{LOCK}", content)

    return Kept(lambda: AddressPlace(Address(uri)), put)


def quick(monkeypatch: pytest.MonkeyPatch, *, stale: float = 0.4) -> None:
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(module, "STALE_SECONDS", stale)


def mark_of(process: ProcessMark, **changes: Any) -> Mark:
    return replace(Mark(process=process, token="of another", since=time.time()), **changes)


def test_one_holds_it_and_can_take_it_again(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch, stale=60.0)
    first, second = Lease(kept.make()), Lease(kept.make())
    for _ in range(2):
        first.acquire()
        first.acquire()
        assert first.is_held()
        assert second.is_held()
        with pytest.raises(StudyLockedError, match=rf"process {os.getpid()} on .*holds .*; wait for it, or give"):
            second.acquire()
        first.check()
        first.release()
        first.release()
        assert not first.is_held()
        assert not second.is_held()
        assert not first.was_left


def test_a_holder_of_this_machine_that_has_died_holds_nothing(kept: Kept) -> None:
    here = ProcessMark.here()
    assert here.started is not None
    kept.write(mark_of(replace(here, started=here.started - 1)).to_bytes(), 0.0)
    lease = Lease(kept.make())
    assert not lease.is_held()
    lease.acquire()
    assert lease.was_left
    lease.release()


def test_a_silent_holder_elsewhere_is_replaced_and_a_living_one_is_not(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    kept.write(mark_of(ELSEWHERE).to_bytes(), 3600.0)
    lease = Lease(kept.make())
    lease.acquire()
    assert lease.was_left
    lease.release()

    beats, ended = 0, threading.Event()

    def live() -> None:
        nonlocal beats
        while not ended.wait(0.03):
            beats += 1
            kept.write(mark_of(ELSEWHERE, beats=beats).to_bytes(), 0.0)

    kept.write(mark_of(ELSEWHERE).to_bytes(), 0.0)
    other = threading.Thread(target=live)
    other.start()
    try:
        with pytest.raises(StudyLockedError, match="process 1 on gpu-7"):
            lease.acquire()
        assert lease.is_held()
    finally:
        ended.set()
        other.join()


def test_who_was_replaced_writes_nothing_more(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    lease = Lease(kept.make())
    lease.acquire()
    lease.check()
    kept.write(mark_of(ELSEWHERE).to_bytes(), 0.0)
    for _ in range(200):
        time.sleep(0.02)
        if lease._taken_by:
            break
    with pytest.raises(StudyLockedError, match="process 1 on gpu-7 has taken this one's place"):
        lease.check()
    lease.release()
    after = kept.make().read()
    assert after is not None
    assert after.token == "of another", "it is the other's"


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"pid": "x"}', b'{"host": "a", "pid": -1}', b"\x00" * 40])
def test_a_damaged_mark_locks_nobody_out(kept: Kept, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    quick(monkeypatch)
    kept.write(content, 0.0)
    lease = Lease(kept.make())
    lease.acquire()
    lease.release()


def test_a_mark_reads_as_it_was_written() -> None:
    mark = mark_of(ELSEWHERE, beats=7)
    assert Mark.from_bytes(mark.to_bytes()) == mark
