"""Optuna Dashboard over a study's record: live, with our own notes and plots, and without a way to write.

What is added is added on reading. A journal is opened for reading alone and no lock is taken, so that a search that
writes it never waits, and a folder without write permission is as good as any; a database is asked in transactions
that cannot write.
"""

import threading
import time
from collections.abc import Hashable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from optuna.storages import BaseStorage, JournalStorage, _CachedStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study._frozen import FrozenStudy

from autopeft.errors import MissingDependencyError, ResultError
from autopeft.results.charts import front_chart
from autopeft.results.dashboard_files import AdapterFiles
from autopeft.results.dashboard_server import no_answer, not_yet, page_of_study
from autopeft.results.hypervolume_chart import hypervolume_chart
from autopeft.results.notes import study_note, trial_note
from autopeft.spec.state import StudyState
from autopeft.spec.study import StudySpec
from autopeft.study.database import is_outage
from autopeft.study.folder import StudyFolder
from autopeft.study.front import compared
from autopeft.study.optuna_log import quiet_optuna
from autopeft.study.state import open_store, read_state
from autopeft.study.store import StudyStore

MAX_SHARE_OF_TIME = 0.02
"""Share of a processor that notes and plots may take while a search runs; the rest of the page is always current."""
FETCH_SECONDS = 10.0
"""How old what is shown of a study at an address may be."""
_TITLES = {"front": "Front", "hypervolume": "Hypervolume: the share of all outcomes that the front beats"}


class _ReadOnlyJournal(JournalFileBackend):
    """A journal that cannot be written."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        raise PermissionError("the dashboard only shows a study; nothing can be written through it")


class _Shown(BaseStorage):
    """What both views of a study have in common.

    Notes, plots and links to adapters are Optuna Dashboard's own system attributes of the study, made on reading from
    the state of the study, and again only when that has changed.
    """

    _folder: StudyFolder
    _store: StudyStore

    def _begin(self, folder: StudyFolder, spec: StudySpec) -> None:
        self._folder = folder
        self._store = open_store(folder, spec)
        self._guard = threading.Lock()
        self._added: dict[str, Any] = {}
        self._seen: Hashable = None
        self._next_time = 0.0

    def _stamp(self) -> Hashable:
        """Return a value that is another one when the record has changed."""
        raise NotImplementedError

    def _make(self) -> dict[str, Any]:
        """Return what is added to the record as it is now."""
        raise NotImplementedError

    def _state(self) -> StudyState:
        """Return the study as it is now; of the record, what is new alone is read."""
        return read_state(self._folder.path, store=self._store)

    def check(self) -> None:
        """Make sure that the record can be read; raises an error that `is_outage` knows where it cannot be now."""

    def close(self) -> None:
        """Close the connections to a database; can be called twice."""
        self._store.close()

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the attributes in the record and the added ones."""
        return {**super().get_study_system_attrs(study_id), **self._additions()}  # type: ignore[safe-super]

    def get_all_studies(self) -> list[FrozenStudy]:
        """Return the study with the attributes in the record and the added ones."""
        studies = super().get_all_studies()  # type: ignore[safe-super]
        for study in studies:
            study.system_attrs = {**study.system_attrs, **self._additions()}
        return studies

    def _additions(self) -> dict[str, Any]:
        with self._guard:
            if time.monotonic() >= self._next_time and (stamp := self._stamp()) != self._seen:
                start = time.thread_time()  # of the processor: while others have it, nothing is taken from the search
                with quiet_optuna():
                    self._added = self._make()
                self._seen = stamp
                self._next_time = time.monotonic() + (time.thread_time() - start) / MAX_SHARE_OF_TIME
            return self._added


class StudyView(_Shown, JournalStorage):
    """A study's journal as the page reads it."""

    def __init__(self, folder: Path, spec: StudySpec) -> None:
        self._begin(StudyFolder(folder), spec)
        super().__init__(_ReadOnlyJournal(str(self._folder.journal)))

    def _stamp(self) -> Hashable:
        journal = self._folder.journal.stat()
        return journal.st_size, journal.st_mtime_ns

    def _make(self) -> dict[str, Any]:
        return additions(self._state())


class DatabaseView(_Shown, _CachedStorage):
    """A study in a database as the page reads it: that one alone of those in there."""

    def __init__(self, folder: Path, spec: StudySpec) -> None:
        self._begin(StudyFolder(folder), spec)
        self._spec = spec
        assert self._store.database is not None
        super().__init__(self._store.database.storage)

    def get_all_studies(self) -> list[FrozenStudy]:
        """Return the study with the attributes in the record and the added ones."""
        return [study for study in super().get_all_studies() if study.study_name == self._spec.study_name]

    def check(self) -> None:
        """Make sure that the record can be read; raises an error that `is_outage` knows where it cannot be now."""
        assert self._store.database is not None
        self._store.database.check()

    def _stamp(self) -> Hashable:
        return self._store.stamp()

    def _make(self) -> dict[str, Any]:
        return additions(self._state(), self._store.ids)


def additions(state: StudyState, ids: Mapping[int, int] | None = None) -> dict[str, Any]:
    """Return the system attributes that Optuna Dashboard shows as notes, plots and files.

    Their keys are those that `optuna_dashboard.save_note` and `save_plotly_graph_object` write. It splits long
    texts because databases limit an attribute's length; in memory one piece is enough.

    Args:
        state: The study.
        ids: What Optuna calls each trial by, by number; in a journal that holds one study, as ours do, its number.
    """
    ids = {trial.number: trial.number for trial in state.trials} if ids is None else ids
    added: dict[str, Any] = {"dashboard:note_ver": 1, "dashboard:note_str:0": study_note(state)}
    for trial in state.trials:
        added[f"dashboard:{ids[trial.number]}:note_ver"] = 1
        added[f"dashboard:{ids[trial.number]}:note_str:0"] = trial_note(state, trial)
    added |= AdapterFiles(StudyFolder(state.folder)).links(compared(state.trials, state.objectives), ids)
    for name, figure in (("front", front_chart(state)), ("hypervolume", hypervolume_chart(state))):
        if figure is not None:
            # The page gives these plots no heading of its own; the legend stands between this one and the plot.
            title = {"text": _TITLES[name], "x": 0.02, "y": 0.97, "yanchor": "top", "font": {"size": 16}}
            figure.update_layout(template="plotly_white", title=title, margin={"t": 84})
            added[f"dashboard:plot_data:{name}:0"] = figure.to_json()
    return added


class StudyApp:
    """Optuna Dashboard for the study in a folder or at an address, as a WSGI application.

    It waits for a study that a search has not written yet, and goes over to another one that takes its place.

    Raises:
        MissingDependencyError: Optuna Dashboard, or what the address needs, is not installed.
        StudyError: No storage is known by the address.
    """

    def __init__(self, location: str | Path) -> None:
        try:
            from optuna_dashboard import wsgi
        except ImportError as error:
            raise MissingDependencyError(
                f"the dashboard needs the package optuna-dashboard, but: {error}; pip install optuna-dashboard"
            ) from None
        self._wsgi = wsgi
        self._location = location
        self._folder = StudyFolder.at(location)
        self._next_fetch = 0.0
        self._lock = threading.Lock()
        self._app: WSGIApplication = not_yet
        self._shown: Hashable = None
        self._view: StudyView | DatabaseView | None = None

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request."""
        try:
            app = self._current()
            if (view := self._view) is not None:
                view.check()
            return app(environ, start_response)
        except Exception as error:
            if is_outage(error):
                return no_answer(environ, start_response)
            raise

    def check(self) -> None:
        """Make sure that there is something to show, before a browser asks.

        Raises:
            ResultError: The folder holds no study.
            StudyMismatchError: Another version of autopeft wrote it.
            MissingDependencyError, StorageError: The address, or the database that keeps the study, cannot be used.
        """
        read_state(self._location)

    def close(self) -> None:
        """Let go of what is shown, and of its connections; a request after that begins anew."""
        if self._view is not None:
            self._view.close()
        self._app, self._shown, self._view = not_yet, None, None

    def _current(self) -> WSGIApplication:
        with self._lock:
            if time.monotonic() >= self._next_fetch:
                self._folder.fetch()
                self._next_fetch = time.monotonic() + FETCH_SECONDS
            spec = self._spec()
            shown = self._what(spec)
            if shown is None or shown != self._shown:
                self.close()
                with suppress(ResultError, KeyError), quiet_optuna():  # there is no study in the folder or the record
                    read_state(self._folder.path)
                    assert spec is not None
                    path = self._folder.path
                    view = StudyView(path, spec) if spec.storage is None else DatabaseView(path, spec)
                    self._view = view
                    page = self._wsgi(view, artifact_store=AdapterFiles(self._folder))
                    self._app, self._shown = page_of_study(page, view.get_study_id_from_name(spec.study_name)), shown
            return self._app

    def _spec(self) -> StudySpec | None:
        values = self._folder.read_description()
        return None if values is None else StudySpec(**values["spec"])

    def _what(self, spec: StudySpec | None) -> Hashable:
        """Return what tells a study from another one that takes its place; None where there is none."""
        if spec is not None and spec.storage is not None:
            return spec.storage, spec.study_name
        # Whoever begins a journal writes an identifier of its own into the first line.
        try:
            with self._folder.journal.open("rb") as journal:
                return journal.readline() or None
        except FileNotFoundError:
            return None
