"""The record: a journal cut anywhere in its last line, and who may write."""

from pathlib import Path

import pytest

from autopeft.errors import StudyLockedError, StudyMismatchError
from autopeft.searching.folder import StudyFolder
from autopeft.searching.storage import repair_journal
from autopeft.spec.trial import Outcome
from tests.searching.conftest import Bench, KnownWorker


def test_a_journal_cut_at_any_byte_of_its_last_line_is_repaired(bench: Bench) -> None:
    bench.run(KnownWorker(bench.model), n_trials=5)
    journal = bench.folder.journal
    whole = journal.read_bytes()
    complete = [r for r in bench.store().records() if r.outcome is Outcome.COMPLETE]
    last_line = whole.rstrip(b"\n").rfind(b"\n") + 1
    for cut in range(last_line, len(whole)):
        journal.write_bytes(whole[:cut])
        assert repair_journal(journal) == cut - last_line
        assert journal.read_bytes() == whole[:last_line]
    journal.write_bytes(whole[: last_line + 5])
    store = bench.run(KnownWorker(bench.model), n_trials=6)
    assert [r for r in store.records() if r in complete] == complete


def test_a_whole_journal_is_left_alone(bench: Bench) -> None:
    bench.run(KnownWorker(bench.model), n_trials=2)
    before = bench.folder.journal.read_bytes()
    assert repair_journal(bench.folder.journal) == 0
    assert bench.folder.journal.read_bytes() == before
    assert repair_journal(bench.folder.path / "none") == 0


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    first, second = StudyFolder(tmp_path / "x"), StudyFolder(tmp_path / "x")
    first.acquire()
    with pytest.raises(StudyLockedError, match="another one holds"):
        second.acquire()
    first.release()
    second.acquire()
    second.release()


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    assert folder.read_description() is None
    folder.description.write_text("[]")
    with pytest.raises(StudyMismatchError, match="cannot be read"):
        folder.read_description()
    folder.write_json(folder.description, {"schema_version": 99})
    with pytest.raises(StudyMismatchError, match="schema_version 1, but has 99"):
        folder.read_description()


def test_a_write_that_fails_leaves_the_old_content(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    path = tmp_path / "a" / "b.json"
    folder.write_json(path, {"x": 1})
    with pytest.raises(TypeError):
        folder.write_json(path, {"x": object()})
    with pytest.raises(TypeError):
        folder.write(path, None)  # type: ignore[arg-type]
    assert path.read_text() == '{\n  "x": 1\n}\n'
