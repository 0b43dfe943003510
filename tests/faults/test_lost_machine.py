"""A machine goes with its disks: the study lies at an address, and another machine goes on from there."""

import errno
import logging
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

import autopeft
from autopeft.errors import MissingDependencyError, StorageError, StudyError, StudyLockedError, StudyMismatchError
from autopeft.spec.location import working_folder
from autopeft.spec.model import ModelSummary
from autopeft.spec.study import make_study
from autopeft.spec.trial import Outcome
from autopeft.study import address, lease, remote_copy
from autopeft.study.cleanup import clean
from autopeft.study.folder import StudyFolder
from autopeft.study.lease import Mark
from autopeft.study.process import ProcessMark
from autopeft.study.remote_copy import RemoteCopy
from autopeft.study.working_copy import WorkingCopy
from tests.faults.driver import check_whole, complete, kill, records, search, start, wait_for_size

N_TRIALS = 25


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_copy.AddressPlace, "settle_seconds", 0.05)


def copy_of(location: str, folder: Path) -> Path:
    """Return a working folder that a reader on yet another machine makes."""
    study = StudyFolder.at(location, str(folder))
    study.fetch(everything=True)
    return study.path


def test_each_kill_is_followed_by_another_machine(tmp_path: Path, summary: ModelSummary) -> None:
    location, moments = f"file://{tmp_path}/store/study", random.Random(3)
    known: dict[int, Any] = {}
    for machine in range(5):
        work_dir = tmp_path / f"machine-{machine}"
        process = start(location, summary, n_trials=N_TRIALS, work_dir=str(work_dir))
        journal = work_dir / "study" / "study.journal"
        wait_for_size(process, journal, 1)  # brought from the address, or begun
        before = journal.stat().st_size
        wait_for_size(process, journal, before + moments.randrange(1, 8_000))
        time.sleep(moments.random() * 0.01)
        kill(process)
        process.join()
        assert process.exitcode == -9, "the study must be long enough"
        now = complete(records(copy_of(location, tmp_path / f"reader-{machine}"), summary))
        assert {number: now[number] for number in known} == known
        known = now
    process = start(location, summary, n_trials=N_TRIALS, work_dir=str(tmp_path / "last"))
    process.join()
    assert process.exitcode == 0
    after = complete(check_whole(copy_of(location, tmp_path / "reader"), summary, n_trials=N_TRIALS))
    assert {number: after[number] for number in known} == known
    assert after == complete(check_whole(tmp_path / "last" / "study", summary, n_trials=N_TRIALS))


def test_the_address_is_the_truth(tmp_path: Path, summary: ModelSummary) -> None:
    """What a machine has written for itself alone was never counted, and does not come back with it."""
    location = "memory://truth/study"
    search(location, summary, n_trials=4, work_dir=str(tmp_path / "a"))
    StudyFolder(tmp_path / "a" / "study").checkpoints.path.joinpath("99-1.sha256-" + "0" * 32 + ".safetensors").touch()
    with (tmp_path / "a" / "study" / "study.journal").open("ab") as file:
        file.write(b"not at the address\n")
    search(location, summary, n_trials=6, work_dir=str(tmp_path / "b"))
    search(location, summary, n_trials=7, work_dir=str(tmp_path / "a"))
    check_whole(tmp_path / "a" / "study", summary, n_trials=7)
    assert not StudyFolder(tmp_path / "a" / "study").checkpoints.files(99)
    names = RemoteCopy(location).names()
    assert sum(name.startswith("journal/") for name in names) > 1
    assert "lock.json" not in names
    search(location, summary, n_trials=7, work_dir=str(tmp_path / "c"))
    assert sum(name.startswith("journal/") for name in RemoteCopy(location).names()) <= 2


def test_the_journal_survives_a_stop_anywhere_in_its_compaction() -> None:
    lines = [f"line {n}\n".encode() for n in range(6)]
    whole = b"".join(lines)

    class StopHereError(Exception):
        pass

    for n_steps in range(len(lines) + 1):
        store = RemoteCopy(f"memory://compaction/{n_steps}")
        for n, line in enumerate(lines):
            store.append_journal(len(b"".join(lines[:n])), line)
        steps = 0

        def count(*_: Any, n_steps: int = n_steps) -> None:
            nonlocal steps
            steps += 1
            if steps > n_steps:
                raise StopHereError

        class Stopping(RemoteCopy):
            def put(self, name: str, content: bytes, count: Any = count) -> None:
                count()
                super().put(name, content)

            def remove(self, name: str, count: Any = count) -> None:
                count()
                super().remove(name)

        try:
            Stopping(store.uri).compact_journal(store.names(), whole)
            assert len(store.names()) == 1
        except StopHereError:
            pass
        assert store.journal(store.names()) == whole


def test_a_part_that_is_missing_ends_the_journal_before_it() -> None:
    store = RemoteCopy("memory://gap/study")
    store.append_journal(0, b"one\n")
    store.append_journal(4, b"two\n")
    store.append_journal(8, b"three\n")
    store.remove("journal/000000000000004")
    assert store.journal(store.names()) == b"one\n"


def test_one_search_at_a_time_holds_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.05)
    first, second = RemoteCopy("memory://held/study"), RemoteCopy("memory://held/study")
    first.acquire()
    with pytest.raises(StudyLockedError, match=r"process \d+ on .* holds memory://held/study; wait for it"):
        second.acquire()
    assert second.lease.is_held()
    first.release()
    assert not second.lease.is_held()
    second.acquire()
    second.release()


def test_a_search_elsewhere_that_says_nothing_is_replaced_and_writes_nothing_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(lease, "STALE_SECONDS", 0.5)
    files = fsspec.filesystem("memory")
    files.pipe_file(
        "/silent/study/lock.json", b'{"host": "far", "pid": 7, "machine": "m", "started": 1, "since": 1, "beats": 3}'
    )
    late = RemoteCopy("memory://silent/study")
    with caplog.at_level(logging.WARNING, "autopeft"):
        late.acquire()
    assert "process 7 on far" in caplog.text
    files.pipe_file(
        "/silent/study/lock.json",
        b'{"host": "near", "pid": 8, "machine": "m", "started": 1, "since": 1, "token": "another"}',
    )
    for _ in range(100):
        time.sleep(0.05)
        if late.lease._taken_by:
            break
    with pytest.raises(StudyLockedError, match=r"process 8 on near .*has taken this one's place"):
        late.put("study.json", b"{}")
    late.release()
    assert files.exists("/silent/study/lock.json"), "it is the other's"


def test_a_search_that_slept_looks_before_it_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its machine is suspended, and wakes before the thread has its turn that says that it lives."""
    monkeypatch.setattr(lease, "BEAT_SECONDS", 600.0)
    monkeypatch.setattr(lease, "STALE_SECONDS", 0.1)
    asleep, other = RemoteCopy("memory://asleep/study"), RemoteCopy("memory://asleep/study")
    asleep.acquire()
    asleep.append_journal(0, b"one\n")
    clock = lease._now
    monkeypatch.setattr(lease, "_now", lambda: clock() + 3600.0)
    asleep.append_journal(4, b"two\n")  # nobody has come meanwhile
    other.acquire()
    other.append_journal(8, b"three\n")
    names = other.names()
    for write in (
        lambda: asleep.append_journal(8, b"3rd\n"),
        lambda: asleep.put("study.json", b"{}"),
        lambda: asleep.remove("journal/000000000000000"),
    ):
        with pytest.raises(StudyLockedError, match=r"process \d+ on .* has taken this one's place at memory://asleep"):
            write()
    asleep.release()
    assert other.names() == names
    assert other.journal(names) == b"one\ntwo\nthree\n"
    other.release()
    assert not RemoteCopy("memory://asleep/study").lease.is_held()


def test_of_two_that_take_the_place_of_a_silent_one_the_second_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.05)
    gone = Mark(process=replace(ProcessMark.here(), started=1), token="of a process that has ended", since=0.0)
    fsspec.filesystem("memory").pipe_file("/race/study/lock.json", gone.to_bytes())
    both = threading.Barrier(2)
    has_written = [threading.Event(), threading.Event()]

    class Ordered(address.Address):
        """Both have seen that it is gone; then the first writes itself into the lock, then the second."""

        def put(self, name: str, content: bytes) -> None:
            is_second = self is second._address
            if not has_written[is_second].is_set():
                both.wait(60)
                if is_second:
                    assert has_written[0].wait(60)
            super().put(name, content)
            has_written[is_second].set()

    class Settling(remote_copy.AddressPlace):
        @property
        def settle_seconds(self) -> float:  # type: ignore[override]
            assert has_written[1].wait(60)
            return 0.0

    monkeypatch.setattr(remote_copy, "Address", Ordered)
    monkeypatch.setattr(remote_copy, "AddressPlace", Settling)
    first, second = RemoteCopy("memory://race/study"), RemoteCopy("memory://race/study")
    with ThreadPoolExecutor(2) as pool:
        refused, held = [pool.submit(each.acquire).exception for each in (first, second)]
        assert isinstance(refused(), StudyLockedError)
        assert held() is None
    assert second.lease.was_left
    second.release()


@pytest.mark.parametrize("place", ["memory", "disk", "disk without hard links"])
def test_a_part_of_the_journal_is_never_written_over(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if place.endswith("without hard links"):
        monkeypatch.setattr(os, "link", refuse)
    uri = "memory://over/study" if place == "memory" else f"file://{tmp_path}/store/study"
    mine, other = RemoteCopy(uri), RemoteCopy(uri)
    mine.append_journal(0, b"one\n")
    mine.append_journal(0, b"one\n")  # the first answer was lost
    with pytest.raises(StudyLockedError, match=r"another one has written journal/0+ at .*the same command goes on"):
        other.append_journal(0, b"two\n")
    assert mine.journal(mine.names()) == b"one\n"
    assert not list(tmp_path.rglob("*.tmp"))


def test_what_cannot_be_reached_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(address, "PAUSES_SECONDS", (0.0, 0.0))
    (tmp_path / "file").write_bytes(b"")
    store = RemoteCopy(f"file://{tmp_path}/file/study")
    with pytest.raises(StorageError, match=r"must be reachable, but to write x failed with \w+: .*the same command"):
        store.put("x", b"1")
    with pytest.raises(StudyError, match="fsspec knows, but got 'nowhere://x/y'"):
        RemoteCopy("nowhere://x/y")
    with pytest.raises(MissingDependencyError, match="gcsfs"):
        RemoteCopy("gs://bucket/study")


def test_names_that_leave_the_folder_are_left_alone(tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    files.pipe_file("/bad/study/study.json", b"{}")
    files.store["/bad/study/../../outside"] = files.store["/bad/study/study.json"]
    assert set(RemoteCopy("memory://bad/study").names()) == {"study.json"}


def test_a_working_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "thesis.tex").write_text("mine")
    with pytest.raises(StudyMismatchError, match="has content of its own; give another work_dir"):
        WorkingCopy.make(tmp_path / "study", "memory://a/study")
    WorkingCopy.make(tmp_path / "other", "memory://a/study")
    with pytest.raises(StudyMismatchError, match="belongs to memory://a/study and not to memory://b/study"):
        WorkingCopy.make(tmp_path / "other", "memory://b/study")


def test_where_an_address_is_worked_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    folders = {working_folder(f"s3://{bucket}/runs/x") for bucket in "ab"}
    assert len(folders) == 2
    assert all(folder.name == "x" and folder.is_relative_to("/cache/autopeft/studies") for folder in folders)
    spec = make_study({"model": "m", "data": "d", "output_dir": "s3://b/runs/", "study_name": "x", "work_dir": "w"})
    assert (spec.location, spec.folder) == ("s3://b/runs/x", Path("w/x"))
    with pytest.raises(StudyError, match="must hold no password"):
        make_study({"model": "m", "data": "d", "output_dir": "ftp://me:secret@host/runs"})


def test_what_is_removed_goes_at_the_address_too(tmp_path: Path) -> None:
    location = "memory://clean/study"
    folder = StudyFolder.at(location, str(tmp_path))
    folder.acquire()
    path = folder.checkpoints.save(1, 10, b"x")
    folder.release()
    assert f"checkpoints/{path.name}" in RemoteCopy(location).names()
    folder.remove(path)
    assert f"checkpoints/{path.name}" not in RemoteCopy(location).names()


def test_who_reads_an_address_never_writes_over_a_search_that_begins(tmp_path: Path) -> None:
    """A reader has just read the journal, when a search begins in the same working folder and goes on with it."""
    location = "memory://reading/study"
    RemoteCopy(location).append_journal(0, b"one\n")
    reader, searching = (StudyFolder.at(location, str(tmp_path)) for _ in range(2))
    assert reader._copy is not None
    pull = reader._copy.pull

    def pull_slowly(*, everything: bool) -> bytes | None:
        journal = pull(everything=everything)
        reader._copy.pull = pull
        searching.acquire()
        with searching.journal.open("ab") as file:
            file.write(b"two\n")
        return journal

    reader._copy.pull = pull_slowly
    reader.fetch()
    assert searching.journal.read_bytes() == b"one\ntwo\n"
    reader.fetch()
    assert searching.journal.read_bytes() == b"one\ntwo\n"
    searching.release()
    reader.fetch()
    assert reader.journal.read_bytes() == b"one\n", "what has not reached the address does not count"


def test_parts_of_a_journal_are_read_once_and_a_study_begun_anew_is_noticed() -> None:
    store, other = RemoteCopy("memory://parts/study"), RemoteCopy("memory://parts/study")
    for n, line in enumerate([b"a 1\n", b"a 2\n", b"a 3\n"]):
        other.append_journal(4 * n, line)
    read, names = store.read, []
    store.read = lambda name: (names.append(name), read(name))[1]
    assert store.journal(store.names()) == b"a 1\na 2\na 3\n"
    other.append_journal(12, b"a 4\n")
    names.clear()
    assert store.journal(store.names()) == b"a 1\na 2\na 3\na 4\n"
    assert [int(name.rpartition("/")[2]) for name in names] == [0, 12]
    for name in other.names():
        other.remove(name)
    for n, line in enumerate([b"b 1\n", b"b 2\n", b"b 3\n", b"b 4\n"]):
        other.append_journal(4 * n, line)
    assert store.journal(store.names()) == b"b 1\nb 2\nb 3\nb 4\n"


@pytest.mark.slow
def test_a_study_at_an_address_from_search_to_load(
    study: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    location = f"file://{tmp_path}/store"
    first = autopeft.search(**{**study, "output_dir": location, "work_dir": str(tmp_path / "a"), "n_trials": 1})
    assert isinstance(first, autopeft.SearchResult)
    second = autopeft.search(**{**study, "output_dir": location, "work_dir": str(tmp_path / "b"), "n_trials": 2})
    assert isinstance(second, autopeft.SearchResult)
    assert second.state.trials[: len(first.state.trials)] == first.state.trials
    result = autopeft.open(f"{location}/tiny")
    assert result.state.trials == second.state.trials
    assert result.state.tests == second.state.tests
    best = result.best()
    assert not list(result.state.folder.rglob("*.safetensors")), "weights come when they are asked for"
    target = result.export(best, tmp_path / "adapter")
    model, _ = autopeft.load(target)
    same, _ = autopeft.load(f"{location}/tiny/adapters/{best.number}")
    assert {n: t.sum() for n, t in model.state_dict().items()} == {n: t.sum() for n, t in same.state_dict().items()}
    rows = Path(study["data"])
    elsewhere = autopeft.predict(f"{location}/tiny/adapters/{best.number}", rows, limit=20)
    assert elsewhere.equals(autopeft.predict(target, rows, limit=20))
    for name in ("report.html", "front.json", "front.png", "study.json", "search.log", "lock.json"):
        assert (tmp_path / "store" / "tiny" / name).is_file() == (name != "lock.json")
    assert not any(t.outcome is Outcome.RUNNING for t in result.state.trials)
    kept = list((tmp_path / "store").rglob("checkpoints/*"))
    gone = clean(f"{location}/tiny")
    assert gone
    assert len(list((tmp_path / "store").rglob("checkpoints/*"))) == len(kept) - len(gone)
