"""Optuna's journal file, with entries that belong together written in one append."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock


def repair_journal(path: Path) -> int:
    """Cut a torn last line off a journal, which Optuna could not read; return how many bytes went.

    A line is torn when the machine stopped while it was written: what it said was not yet said.
    """
    if not path.is_file():
        return 0
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

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), lock_obj=JournalFileOpenLock(str(path)))
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
                super().append_logs(held)
                for _ in self.read_logs(self._n_read):  # their places in the file are known from here on
                    pass

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
            super().append_logs(logs)
        else:
            self._held += logs
