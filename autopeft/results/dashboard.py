"""Optuna Dashboard over a study's journal: live, with our own notes and plots, and without a way to write.

What is added is added on reading. The journal is opened for reading alone and no lock is taken, so that a
search that writes it never waits, and a folder without write permission is as good as any.
"""

import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study._frozen import FrozenStudy

from autopeft.errors import MissingDependencyError, ResultError
from autopeft.results.charts import front_chart
from autopeft.results.dashboard_server import not_yet
from autopeft.results.hypervolume_chart import hypervolume_chart
from autopeft.results.notes import study_note, trial_note
from autopeft.searching.folder import StudyFolder
from autopeft.searching.sampler import quiet_optuna
from autopeft.searching.state import read_state
from autopeft.spec.state import StudyState

MAX_SHARE_OF_TIME = 0.1
"""Share of the time that may go into notes and plots while a search runs; the rest of the page is always current."""
_TITLES = {"front": "Front", "hypervolume": "Hypervolume: the share of all outcomes that the front beats"}


class _ReadOnlyJournal(JournalFileBackend):
    """A journal that cannot be written."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        raise PermissionError("the dashboard only shows a study; nothing can be written through it")


class StudyView(JournalStorage):
    """A study's journal as the page reads it.

    Notes and plots are Optuna Dashboard's own system attributes of the study, made on reading from the state of
    the study and again only when the journal has changed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = StudyFolder(folder)
        super().__init__(_ReadOnlyJournal(str(self._folder.journal)))
        self._lock = threading.Lock()
        self._added: dict[str, Any] = {}
        self._seen: tuple[int, int] | None = None
        self._next_time = 0.0

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the attributes in the journal and the added ones."""
        return {**super().get_study_system_attrs(study_id), **self._additions()}

    def get_all_studies(self) -> list[FrozenStudy]:
        """Return the study with the attributes in the journal and the added ones."""
        studies = super().get_all_studies()
        for study in studies:
            study.system_attrs = {**study.system_attrs, **self._additions()}
        return studies

    def _additions(self) -> dict[str, Any]:
        with self._lock:
            journal = self._folder.journal.stat()
            seen = (journal.st_size, journal.st_mtime_ns)
            start = time.monotonic()
            if seen != self._seen and start >= self._next_time:
                with quiet_optuna():
                    self._added = additions(read_state(self._folder.path))
                self._seen = seen
                end = time.monotonic()
                self._next_time = end + (end - start) / MAX_SHARE_OF_TIME
            return self._added


def additions(state: StudyState) -> dict[str, Any]:
    """Return the system attributes that Optuna Dashboard shows as notes and plots.

    Their keys are those that `optuna_dashboard.save_note` and `save_plotly_graph_object` write. It splits long
    texts because databases limit an attribute's length; in memory one piece is enough.
    """
    added: dict[str, Any] = {"dashboard:note_ver": 1, "dashboard:note_str:0": study_note(state)}
    for trial in state.trials:
        # In a journal that holds one study, as ours do, a trial's number is its id.
        added[f"dashboard:{trial.number}:note_ver"] = 1
        added[f"dashboard:{trial.number}:note_str:0"] = trial_note(state, trial)
    for name, figure in (("front", front_chart(state)), ("hypervolume", hypervolume_chart(state))):
        if figure is not None:
            # The page gives these plots no heading of its own; the legend stands between this one and the plot.
            title = {"text": _TITLES[name], "x": 0.02, "y": 0.97, "yanchor": "top", "font": {"size": 16}}
            figure.update_layout(template="plotly_white", title=title, margin={"t": 84})
            added[f"dashboard:plot_data:{name}:0"] = figure.to_json()
    return added


class StudyApp:
    """Optuna Dashboard for the study in a folder, as a WSGI application.

    It waits for a study that a search has not written yet, and goes over to another one that takes its place.

    Raises:
        MissingDependencyError: Optuna Dashboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from optuna_dashboard import wsgi
        except ImportError as error:
            raise MissingDependencyError(
                f"the dashboard needs the package optuna-dashboard, but: {error}; pip install optuna-dashboard"
            ) from None
        self._wsgi = wsgi
        self._folder = StudyFolder(folder)
        self._lock = threading.Lock()
        self._app: WSGIApplication = not_yet
        self._first_line = b""

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request."""
        return self._current()(environ, start_response)

    def check(self) -> None:
        """Make sure that there is something to show, before a browser asks.

        Raises:
            ResultError: The folder holds no study.
            StudyMismatchError: Another version of autopeft wrote it.
        """
        read_state(self._folder.path)

    def _current(self) -> WSGIApplication:
        with self._lock:
            # Whoever begins a journal writes an identifier of its own into the first line.
            try:
                with self._folder.journal.open("rb") as journal:
                    first_line = journal.readline()
            except FileNotFoundError:
                first_line = b""
            if first_line != self._first_line:
                self._app, self._first_line = not_yet, b""
                if self._has_study():
                    with quiet_optuna():
                        self._app = self._wsgi(StudyView(self._folder.path))
                    self._first_line = first_line
            return self._app

    def _has_study(self) -> bool:
        try:
            read_state(self._folder.path)
        except (ResultError, KeyError):  # the study file or the journal is missing; the journal has no study yet
            return False
        return True
