"""The files of trained adapters as Optuna Dashboard links to them, as artifacts of their trials; to read alone."""

import json
import mimetypes
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

from optuna.artifacts.exceptions import ArtifactNotFound

from autopeft.spec.trial import TrialRecord
from autopeft.study.folder import ADAPTER_MARK, StudyFolder

_ID = re.compile(r"([0-9]{1,9})-([0-9]{1,3})")
_TYPES = {".json": "application/json", ".md": "text/plain; charset=utf-8"}


class AdapterFiles:
    """The adapters of a study as an artifact store of Optuna.

    An artifact is called by the number of its trial and its place among the trial's files, by name.
    """

    def __init__(self, folder: StudyFolder) -> None:
        self._folder = folder

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open a file. Raises ArtifactNotFound where there is none."""
        match = _ID.fullmatch(artifact_id)
        files = self._files(int(match[1])) if match is not None else []
        if match is None or int(match[2]) >= len(files):
            raise ArtifactNotFound(f"no adapter has a file {artifact_id!r}")
        return (self._folder.fetch_adapter(int(match[1])) / files[int(match[2])]).open("rb")

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Refuse. Raises PermissionError."""
        raise PermissionError("the dashboard only shows a study; nothing can be written through it")

    def remove(self, artifact_id: str) -> None:
        """Refuse. Raises PermissionError."""
        raise PermissionError("the dashboard only shows a study; nothing can be removed through it")

    def links(self, trials: Iterable[TrialRecord], ids: Mapping[int, int]) -> dict[str, str]:
        """Return the system attributes of a study by which Optuna Dashboard links to the files of trials.

        Args:
            trials: Those with an adapter that may be here; one that another search has trained is with that one.
            ids: What Optuna calls each trial by, by number.
        """
        links = {}
        for trial in trials:
            for place, file in enumerate(self._files(trial.number)):
                kind = _TYPES.get(Path(file).suffix) or mimetypes.guess_type(file)[0] or "application/octet-stream"
                name = f"{trial.number}-{place}"
                values = {"artifact_id": name, "filename": file, "mimetype": kind, "encoding": None}
                links[f"dashboard:artifacts:{ids[trial.number]}:{name}"] = json.dumps(values)
        return links

    def _files(self, trial: int) -> list[str]:
        names = self._folder.adapter_files(trial)
        return names if ADAPTER_MARK in names else []  # it comes last: without it the adapter is still being written
