"""A study in PostgreSQL or SQLite: errors before anything is trained, secrets kept, and the page that shows it."""

import json
import logging
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any
from wsgiref.types import WSGIApplication

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from autopeft.errors import MissingDependencyError, StorageError
from autopeft.results.dashboard import DatabaseView
from autopeft.spec.state import StudyState
from autopeft.spec.trial import Outcome
from autopeft.study import database as databases
from autopeft.study.description import agree, fetch_description
from autopeft.study.folder import StudyFolder
from autopeft.study.state import read_state
from autopeft.study.store import StudyStore
from autopeft.study.turn import DecisionLostError
from tests.results.generated import Builder, fill
from tests.results.test_dashboard import ask, describe
from tests.study.server import PASSWORD, Server

slow = pytest.mark.slow


def create(url: str, state: StudyState) -> StudyStore:
    name = state.spec.study_name
    return StudyStore.create(state.folder / "study.journal", name=name, objectives=state.objectives, storage=url)


@pytest.fixture
def state(tmp_path: Path) -> StudyState:
    return fill(Builder(folder=tmp_path / "reviews")).state()


def test_the_package_that_speaks_to_it_is_missing(state: StudyState, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingDependencyError, match=r"//u@h/db needs .*pip install 'autopeft\[postgresql\]'"):
        create("postgresql://u:secret@h/db", state)


def test_no_server_is_there(state: StudyState) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(StorageError, match=r"//u@127.0.0.1:1/db says: .*refused.*is the server there") as caught:
        create("postgresql://u:hunter2@127.0.0.1:1/db", state)
    assert "hunter2" not in str(caught.value)


@slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda url: url.replace("tester@", "tester:wrong@"), "password authentication failed.*PGPASSWORD"),
        (lambda url: url + "x", 'database "study.*x" does not exist; create it first'),
    ],
)
def test_a_server_that_does_not_let_us_in(
    database: str, state: StudyState, change: Callable[[str], str], words: str
) -> None:
    with pytest.raises(StorageError, match=words):
        create(change(database), state)
    with pytest.raises(StorageError, match=words):
        StudyStore.read(Path(), name="reviews", objectives=(), storage=change(database))


@slow
def test_a_database_without_a_study_is_read_as_such(database: str) -> None:
    with pytest.raises(KeyError):
        StudyStore.read(Path(), name="reviews", objectives=(), storage=database)


@slow
def test_what_is_written_is_read_back_and_plain_optuna_reads_it(database: str, state: StudyState) -> None:
    store = create(database, state)
    for record in state.trials:
        store.add(record, {"lora.rank": 1}, {"lora.rank": optuna.distributions.IntDistribution(0, 8)})
    store.set_part("n_refused", {"trainable_params": 3})
    store.close()
    other = create(database, state)
    other.set_part("n_refused", {"trainable_params": 4, "duplicate": 1})
    assert other.records() == state.trials
    assert other.changes() == ()
    parts = sorted(other.parts("n_refused"), key=len)
    assert parts == [{"trainable_params": 3}, {"trainable_params": 4, "duplicate": 1}]
    other.close()
    address = database.replace("postgresql:", "postgresql+psycopg:")
    study = optuna.load_study(study_name=state.spec.study_name, storage=address)
    complete = [trial for trial in state.trials if trial.outcome is Outcome.COMPLETE]
    found = study.get_trials(states=(TrialState.COMPLETE,))
    assert [trial.user_attrs["summary"] for trial in found] == [trial.describe() for trial in complete]
    study._storage._backend.engine.dispose()  # type: ignore[attr-defined]


@slow
@pytest.mark.parametrize("is_stopped_for_long", [False, True])
def test_a_trial_that_another_driver_ends_is_as_that_one_says(
    database: str, state: StudyState, monkeypatch: pytest.MonkeyPatch, is_stopped_for_long: bool
) -> None:
    """A driver is stopped where it has seen that its trial runs, and has not yet written how it went."""
    monkeypatch.setattr(databases, "LONGEST_WRITE_SECONDS", 1)
    first, second = create(database, state), create(database, state)
    complete = next(r for r in state.trials if r.outcome is Outcome.COMPLETE)
    running = first.add(replace(complete, outcome=Outcome.RUNNING, examples=1, scores={}, rungs=()))
    taken = replace(running, outcome=Outcome.INTERRUPTED, reason="its driver is gone")
    second.records()
    is_stopped, goes_on, check_state = Event(), Event(), RDBStorage.check_trial_is_updatable

    def check_and_stop(storage: RDBStorage, trial_id: int, trial_state: TrialState) -> None:
        check_state(storage, trial_id, trial_state)
        if storage is first.database.storage and not is_stopped.is_set():
            is_stopped.set()
            assert goes_on.wait(60)

    monkeypatch.setattr(RDBStorage, "check_trial_is_updatable", check_and_stop)
    with ThreadPoolExecutor(2) as pool:
        ends = pool.submit(first.update, replace(complete, number=running.number))
        assert is_stopped.wait(60)
        takes = pool.submit(second.update, taken)
        if is_stopped_for_long:
            assert takes.result(60)
            goes_on.set()
            assert not ends.result(60)
        else:
            with pytest.raises(TimeoutError):
                takes.result(0.5)
            goes_on.set()
            assert ends.result(60)
            assert not takes.result(60)
    (record,) = second.records()
    expected = taken if is_stopped_for_long else complete
    assert record == replace(expected, number=record.number, driver=record.driver)
    first.close()
    second.close()


@slow
def test_what_was_decided_in_a_turn_that_is_lost_is_not_written(
    database: str, server: Server, state: StudyState
) -> None:
    """The server restarts while a driver decides; another one has had a turn since."""
    first, second = create(database, state), create(database, state)
    began = [replace(r, outcome=Outcome.RUNNING) for r in state.trials if r.outcome is Outcome.COMPLETE and r.examples]
    with first.turn():
        first.add(began[0])
        server.stop("immediate")
        server.start()
        with second.turn():
            second.add(began[1])
        with pytest.raises(DecisionLostError):
            first.add(began[2])
        refused = next(r for r in state.trials if r.outcome is Outcome.INFEASIBLE and not r.baseline)
        first.add(refused)  # right whoever has had a turn
    with first.turn():
        first.add(began[3])
    records = second.records()
    first.close()
    second.close()
    assert [r.number for r in records] == [0, 1, 2, 3]
    assert [r.design for r in records] == [r.design for r in (began[0], began[1], refused, began[3])]


@slow
def test_facts_of_one_turn_are_written_once(database: str, state: StudyState) -> None:
    store = create(database, state)
    with store.together():
        for count in range(50):
            store.set_fact("n", count)
            assert store.fact("n") == count
        assert store.parts("n") == []
    assert store.parts("n") == [49]
    store.close()


@slow
def test_nothing_of_a_password_is_left_behind(
    database: str, state: StudyState, caplog: pytest.LogCaptureFixture
) -> None:
    from urllib.parse import quote

    caplog.set_level(logging.DEBUG)
    url = database.replace("tester@", f"tester:{quote(PASSWORD, safe='')}@")
    store = create(url, state)
    store.add(state.trials[0])
    store.close()
    assert PASSWORD not in caplog.text
    assert quote(PASSWORD, safe="") not in caplog.text
    study = optuna.load_study(study_name=state.spec.study_name, storage=database.replace("sql:", "sql+psycopg:"))
    assert PASSWORD not in json.dumps([study.user_attrs, study.trials[0].user_attrs])
    assert any(name.startswith("driver.") for name in study.user_attrs)
    study._storage._backend.engine.dispose()  # type: ignore[attr-defined]


@slow
def test_a_second_driver_takes_over_what_the_first_chose(database: str, state: StudyState, tmp_path: Path) -> None:
    spec = state.spec.model_copy(update={"storage": database})
    folders = [StudyFolder(tmp_path / name) for name in ("a", "b", "c")]
    first = {"schema_version": 1, "training": {"kernel": "sdpa"}, "fingerprints": {"seed": 0}, "facts": {"box": [1.5]}}
    fetch_description(spec, folders[0])
    assert folders[0].read_description() is None
    assert agree(spec, folders[0], first)
    fetch_description(spec, folders[1])
    assert folders[1].read_description() == first
    # Another one that began at the same moment, and measured something else, is told so.
    other = {**first, "training": {"kernel": "eager"}}
    assert not agree(spec, folders[2], other)
    assert folders[2].read_description() == first


@slow
def test_the_page_shows_a_study_in_a_database_and_cannot_write_it(
    page_of: Callable[[Path], WSGIApplication], database: str, server: Server, state: StudyState
) -> None:
    study = state.spec.model_copy(update={"storage": database})
    describe(state, study)
    app = page_of(state.folder)
    assert ask(app, "/dashboard")[0] == 503, "there is no study in the database yet"
    first = StudyStore.create(Path(), name="another", objectives=state.objectives, storage=database)
    first.add(state.trials[0])
    first.close()
    store = create(database, state)
    for record in state.trials[:-1]:
        store.add(record)
    for number in (t.number for t in state.trials if t.outcome is Outcome.COMPLETE):
        folder = StudyFolder(state.folder)
        folder.write(folder.adapter(number) / "adapter_model.safetensors", b"weights")
        folder.write(folder.adapter(number) / "autopeft.json", b"{}")
    studies = ask(app, "/api/studies")[1]["study_summaries"]
    assert [entry["study_name"] for entry in studies] == ["reviews"]
    page = ask(app, f"/api/studies/{studies[0]['study_id']}")[1]
    assert len(page["trials"]) == len(state.trials) - 1
    for trial, shown in zip(state.trials, page["trials"], strict=False):
        assert trial.describe() in shown["note"]["body"]
    check_artifacts(app, studies[0]["study_id"], page)
    view = DatabaseView(state.folder, study)
    with pytest.raises(StorageInternalError) as caught:
        view.set_study_user_attr(studies[0]["study_id"], "a", 1)
    assert "read-only transaction" in str(caught.value.__cause__)
    added = store.add(state.trials[-1])
    assert view.get_all_trials(studies[0]["study_id"])[-1].number == added.number
    view.close()
    store.close()
    assert read_state(state.folder).trials == state.trials


def check_artifacts(app: Any, study_id: int, page: dict[str, Any]) -> None:
    """Check that trials of the front, and no others, link to their adapters, and that the links work."""
    linked = [trial for trial in page["trials"] if trial["artifacts"]]
    assert 0 < len(linked) < len(page["trials"])
    for trial in linked:
        names = {artifact["filename"]: artifact["artifact_id"] for artifact in trial["artifacts"]}
        assert names.keys() == {"autopeft.json", "adapter_model.safetensors"}
        path = f"/artifacts/{study_id}/{trial['trial_id']}"
        assert ask(app, f"{path}/{names['adapter_model.safetensors']}") == (200, b"weights")
        assert ask(app, f"{path}/9-9")[0] == 404


@slow
def test_a_database_that_is_away_is_said_on_the_page(
    page_of: Callable[[Path], WSGIApplication],
    database: str,
    server: Server,
    state: StudyState,
    capfd: pytest.CaptureFixture[str],
) -> None:
    describe(state, state.spec.model_copy(update={"storage": database}))
    store = create(database, state)
    store.add(state.trials[0])
    store.close()
    app = page_of(state.folder)
    assert ask(app, "/api/studies")[0] == 200
    server.stop()
    try:
        status, answer = ask(app, "/api/studies")
        assert (status, b"does not answer" in answer) == (503, True)
    finally:
        server.start()
    assert ask(app, "/api/studies")[0] == 200
    assert capfd.readouterr().err == ""


def test_a_sqlite_file_of_one_driver(state: StudyState, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    store = create(url, state)
    assert store.driver == ""
    assert "is for one search at a time" in caplog.text
    for record in state.trials[:4]:
        store.add(record)
    store.close()
    again = create(url, state)
    assert again.records() == state.trials[:4]
    left = [record.number for record in again.recover()]
    assert left == [t.number for t in state.trials[:4] if t.outcome is Outcome.RUNNING]
    again.close()
