"""The folder of a study: where everything lies, and writes that survive a crash."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from autopeft.errors import StorageError, StudyLockedError, StudyMismatchError
from autopeft.spec.location import is_uri, working_folder
from autopeft.study.checkpoints import Checkpoints
from autopeft.study.folder_lease import FolderPlace
from autopeft.study.lease import Lease
from autopeft.study.working_copy import WorkingCopy, working_copy

SCHEMA_VERSION = 1
ADAPTER_MARK = "autopeft.json"
"""The file of an adapter that is written last: a folder that has it is whole."""


class StudyFolder:
    """Paths of a study, and atomic writes to them.

    `study.journal` is the record; `study.json` is what was asked, chosen and measured once; `checkpoints/`
    holds what unfinished trials go on from, `adapters/` the trained designs, `predictions/` what paired
    comparisons need, `samples/` what designs wrote in the final check, `logs/` the errors of failed trials.

    Where the study lies at an address, this is the folder that it is worked on in, and what is written here counts
    once it is at the address too.

    Args:
        path: A local folder.

    Attributes:
        checkpoints: What unfinished trials go on from.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = Checkpoints(path / "checkpoints", write=self.write, remove=self.remove)
        self._lease = Lease(FolderPlace(path / ".lock"))

    @classmethod
    def at(cls, location: str | Path, work_dir: str | None = None) -> "StudyFolder":
        """Return the folder of a study that lies at a path or an address.

        Raises:
            MissingDependencyError, StudyError: The address needs a package that is not there, or no one knows it.
            StudyMismatchError: The working folder holds something else.
        """
        path = working_folder(str(location), work_dir)
        if is_uri(location):
            WorkingCopy.make(path, str(location))
        return cls(path)

    @property
    def location(self) -> str:
        """Return where the study lies: the path of this folder, or the address that it is a working copy of."""
        return str(self.path) if self._copy is None else self._copy.remote.uri

    @property
    def _copy(self) -> WorkingCopy | None:
        return working_copy(self.path)

    @property
    def journal(self) -> Path:
        """Return the path of the Optuna journal."""
        return self.path / "study.journal"

    @property
    def description(self) -> Path:
        """Return the path of the resolved study file."""
        return self.path / "study.json"

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
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lease.acquire()
        except OSError as error:
            if isinstance(error, FileExistsError | NotADirectoryError):
                raise StorageError(
                    f"a study needs a folder, but {self.path} is a file, or below one; give another output_dir"
                ) from None
            raise cannot_write(self.path, error) from error
        if self._copy is not None:
            try:
                self._copy.acquire()
            except BaseException:
                self._lease.release()
                raise
        self.checkpoints.forget()

    def is_held(self) -> bool:
        """Return whether a search holds the study now."""
        return self._is_held_here() or (self._copy is not None and self._copy.remote.lease.is_held())

    def _is_held_here(self) -> bool:
        return self._lease.is_held()

    @property
    def was_left(self) -> bool:
        """Return whether the search that held the study before this one died with it: it was killed."""
        return self._lease.was_left or (self._copy is not None and self._copy.remote.lease.was_left)

    def release(self) -> None:
        """Let go of the folder."""
        try:
            if self._copy is not None:
                self._copy.remote.release()
        finally:
            self._lease.release()

    def fetch(self, *, everything: bool = False) -> None:
        """Bring what lies at the study's address here, to be read; nothing where it lies here, or is searched here.

        Args:
            everything: Checkpoints and the weights of adapters too.
        """
        if self._copy is None or self._is_held_here():
            return
        journal = self._copy.pull(everything=everything)
        self.checkpoints.forget()
        if journal is not None:
            with suppress(StudyLockedError):  # a search has begun here meanwhile, and writes what comes after that
                self._lease.acquire()
                try:
                    self._copy.write_journal(journal)
                finally:
                    self._lease.release()

    def fetch_adapter(self, trial: int) -> Path:
        """Return the folder of a trained design, brought here where the study lies at an address."""
        if self._copy is not None and not self._is_held_here():
            self._copy.pull_below(f"adapters/{trial}/")
        return self.adapter(trial)

    def adapter_files(self, trial: int) -> list[str]:
        """Return the names of a trained design's files, of those too that `fetch_adapter` would bring."""
        folder = self.adapter(trial)
        here = folder.iterdir() if folder.is_dir() else ()
        names = {path.name for path in here if path.is_file() and not path.is_symlink()}
        if self._copy is not None:
            names |= self._copy.names_in(f"adapters/{trial}/")
        return sorted(names)

    def publish(self, *paths: Path) -> None:
        """Bring to the study's address what was written here by other means than `write`, such as the report.

        Args:
            paths: Files of the study; all where none is given.
        """
        if self._copy is not None:
            self._copy.publish(*paths)

    def write(self, path: Path, content: bytes) -> None:
        """Write a file so that a crash leaves the old content or the new, never a part.

        Raises:
            StorageError: The disk is full, say. What the file held before is still there, and nothing else is left.
        """
        temporary = path.with_name(path.name + ".tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise cannot_write(path, error) from error
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if self._copy is not None:
            self._copy.put(path, content)

    def remove(self, path: Path) -> None:
        """Remove a file of the study, if it is there."""
        path.unlink(missing_ok=True)
        if self._copy is not None:
            self._copy.remove(path)

    def write_json(self, path: Path, values: Any) -> None:
        """Write JSON as `write` does."""
        self.write(path, (json.dumps(values, indent=2) + "\n").encode())

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


def cannot_write(path: Path, error: OSError) -> StorageError:
    """Return the error that says what could not be written, and what to do."""
    return StorageError(
        f"{path} must be written, but {(error.strerror or str(error)).lower()}; what was written before is whole: free "
        "space, or lift the limit, and the same command goes on (autopeft clean FOLDER deletes what is needed no more)"
    )
