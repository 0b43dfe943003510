"""The folder of a study: who may write, and what a crash leaves."""

from pathlib import Path

import pytest

from autopeft.errors import StudyLockedError, StudyMismatchError
from autopeft.study.folder import StudyFolder


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    first, second = StudyFolder(tmp_path / "x"), StudyFolder(tmp_path / "x")
    first.acquire()
    with pytest.raises(StudyLockedError, match=r"process \d+ on .* holds"):
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
