"""Optuna's journal file, with entries that belong together written in one append."""

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from autopeft.study.folder import cannot_write
from autopeft.study.working_copy import working_copy

T = TypeVar("T")


def repair_journal(path: Path) -> int:
    """Cut a torn last line off a journal, which Optuna could not read; return how many bytes went.

    A line is torn when the machine stopped while it was written: what it said was not yet said. A process that was
    killed while it wrote has left Optuna's own lock, too, which the next one would wait half a minute for.
    """
    if not path.is_file():
        return 0
    path.with_name(path.name + ".lock").unlink(missing_ok=True)
    with path.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)
    return len(content) - whole


class JournalFile(JournalFileBackend):
    """A journal file of one writer.

    Every append waits until the disk has it, which is most of what a small write takes. Inside `together`, entries
    are kept and read back from memory, and go to the disk in one append at its end: in order, so that a crash
    leaves the first of them, or all.
    """

    driver = ""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), lock_obj=JournalFileOpenLock(str(path)))
        self._path = path
        self._n_read = 0
        self._held: list[dict[str, Any]] | None = None

    @contextmanager
    def together(self) -> Iterator[None]:
        """Write the entries that are made inside in one append; inside another `together`, in that one's."""
        if self._held is not None:
            yield
            return
        self._held = []
        try:
            yield
        finally:
            held, self._held = self._held, None
            if held:
                self._append(held)
                for _ in self.read_logs(self._n_read):  # their places in the file are known from here on
                    pass

    def in_one_piece(self, trial_id: int | None = None, *, is_decision: bool = False) -> AbstractContextManager[None]:
        """Return a context in which all that is written reaches the disk in one append."""
        return self.together()

    def turn(self) -> AbstractContextManager[None]:
        """Return a context that keeps nobody out: there is nobody else."""
        return nullcontext()

    def ask(self, question: Callable[[], T]) -> T:
        """Return what a function of the journal returns."""
        return question()

    def leave(self) -> None:
        """Do nothing: the folder's lock says who writes a journal."""

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Yield the entries from a number on: those of the file, then those that wait for it."""
        if log_number_from <= self._n_read:
            for number, log in enumerate(super().read_logs(log_number_from), start=log_number_from):
                self._n_read = max(self._n_read, number + 1)
                yield log
        if self._held:
            yield from self._held[max(0, log_number_from - self._n_read) :]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append entries to the file, or keep them for the end of `together`."""
        if self._held is None:
            self._append(logs)
        else:
            self._held += logs

    def _append(self, logs: list[dict[str, Any]]) -> None:
        """Append entries for good: here, and at the address where the study has one.

        Raises:
            StorageError: They cannot be written. The journal is as it was.
        """
        n_bytes = self._path.stat().st_size
        try:
            super().append_logs(logs)
        except OSError as error:
            with suppress(OSError):
                os.truncate(self._path, n_bytes)
            raise cannot_write(self._path, error) from error
        if (copy := working_copy(self._path.parent)) is not None:
            with self._path.open("rb") as file:
                file.seek(n_bytes)
                copy.remote.append_journal(n_bytes, file.read())
