"""The journal: cut anywhere in its last line, and entries that are written together."""

import os
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage

from autopeft.spec.trial import Outcome
from autopeft.study.journal import JournalFile, repair_journal
from tests.bench import Bench, KnownWorker


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


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")


def test_entries_written_together_are_read_at_once_and_are_on_disk_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    file = JournalFile(path)
    study = optuna.create_study(storage=JournalStorage(file), study_name="x")
    study.set_user_attr("before", 0)
    before = lines(path)
    with file.together():
        for number in range(3):
            study.set_user_attr(f"a{number}", number)
            assert study.user_attrs[f"a{number}"] == number
        with file.together():
            study.add_trial(optuna.trial.create_trial(value=1.0))
        assert lines(path) == before
        assert len(study.trials) == 1
    assert lines(path) == before + 4
    study.set_user_attr("after", 1)
    again = optuna.load_study(storage=JournalStorage(JournalFile(path)), study_name="x")
    assert again.user_attrs == study.user_attrs == {"before": 0, "a0": 0, "a1": 1, "a2": 2, "after": 1}
    assert [trial.value for trial in again.trials] == [1.0]


def test_together_waits_for_the_disk_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = JournalFile(tmp_path / "study.journal")
    study = optuna.create_study(storage=JournalStorage(file), study_name="x")
    synced: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(descriptor), fsync(descriptor)))
    with file.together():
        for number in range(5):
            study.set_user_attr(f"a{number}", number)
        assert not synced
    assert len(synced) == 1


def test_what_was_written_before_an_error_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    file = JournalFile(path)
    study = optuna.create_study(storage=JournalStorage(file), study_name="x")

    def write_and_break() -> None:
        with file.together():
            study.set_user_attr("a", 1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_and_break()
    assert optuna.load_study(storage=JournalStorage(JournalFile(path)), study_name="x").user_attrs == {"a": 1}
