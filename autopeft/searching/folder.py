"""The folder of a study: where everything lies, and writes that survive a crash."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from autopeft.errors import StudyLockedError, StudyMismatchError

SCHEMA_VERSION = 1
PATIENCE_SECONDS = 0.5
"""How long a search waits for its folder: somebody may just be asking whether it is held."""


class StudyFolder:
    """Paths of a study, and atomic writes to them.

    `study.journal` is the record; `study.json` is what was asked, chosen and measured once; `checkpoints/`
    holds what unfinished trials go on from, `adapters/` the trained designs, `predictions/` what paired
    comparisons need, `samples/` what designs wrote in the final check, `logs/` the errors of failed trials.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path / ".lock", timeout=PATIENCE_SECONDS)

    @property
    def journal(self) -> Path:
        """Return the path of the Optuna journal."""
        return self.path / "study.journal"

    @property
    def description(self) -> Path:
        """Return the path of the resolved study file."""
        return self.path / "study.json"

    def checkpoint(self, trial: int) -> Path:
        """Return the path of a trial's checkpoint."""
        return self.path / "checkpoints" / f"{trial}.safetensors"

    def adapter(self, trial: int) -> Path:
        """Return the folder of a trained design."""
        return self.path / "adapters" / str(trial)

    def predictions(self, split: str, trial: int | str) -> Path:
        """Return the path of a trial's predictions on a split, or of the split's `labels`."""
        return self.path / "predictions" / f"{split}-{trial}.json"

    def samples(self, trial: int) -> Path:
        """Return the path of what a design wrote in the final check."""
        return self.path / "samples" / f"{trial}.json"

    def log(self, trial: int) -> Path:
        """Return the path of a failed trial's error."""
        return self.path / "logs" / f"trial-{trial}.txt"

    def acquire(self) -> None:
        """Hold the folder for one search; the system frees it when the process ends, however it ends.

        Raises:
            StudyLockedError: Another search holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout:
            raise StudyLockedError(
                f"one search at a time may write a study, but another one holds {self.path}; wait for it, "
                "or give this one another study_name"
            ) from None

    def is_held(self) -> bool:
        """Return whether a search holds the folder now."""
        if not (self.path / ".lock").is_file():
            return False
        try:
            with FileLock(self.path / ".lock", timeout=0):
                return False
        except Timeout:
            return True
        except OSError:  # on a medium that cannot be written to
            return False

    def release(self) -> None:
        """Let go of the folder."""
        self._lock.release()

    def write(self, path: Path, content: bytes) -> None:
        """Write a file so that a crash leaves the old content or the new, never a part."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def write_json(self, path: Path, values: Any) -> None:
        """Write JSON as `write` does."""
        self.write(path, (json.dumps(values, indent=2) + "\n").encode())

    def write_adapter(self, trial: int, files: Mapping[str, bytes]) -> None:
        """Write a trained design; its `autopeft.json` comes last, so that a folder that has it is whole."""
        for name in sorted(files, key=lambda name: name == "autopeft.json"):
            self.write(self.adapter(trial) / name, files[name])

    def read_description(self) -> dict[str, Any] | None:
        """Return the resolved study file, or None where the folder holds no study yet.

        Raises:
            StudyMismatchError: The file is not one that this version can read.
        """
        if not self.description.is_file():
            return None
        try:
            values = json.loads(self.description.read_text(encoding="utf-8"))
            schema = values["schema_version"]
        except (ValueError, KeyError, TypeError):
            raise StudyMismatchError(
                f"{self.description} must be a study that autopeft wrote, but it cannot be read; "
                "give another study_name or output_dir"
            ) from None
        if schema != SCHEMA_VERSION:
            raise StudyMismatchError(
                f"{self.description} must have schema_version {SCHEMA_VERSION}, but has {schema}; "
                "open it with the version of autopeft that wrote it"
            )
        return values  # type: ignore[no-any-return]
