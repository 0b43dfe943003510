"""The lease of a study in its folder: a file with the system's own lock where the file system has one.

The system frees its lock (flock) when the holder dies, however that happens. Not every file system has such locks, and
some have them for each host alone: the holder's mark in the file counts as well.
"""

import errno
import fcntl
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path

from autopeft.study.lease import Mark

_UNLOCKED_SETTLE_SECONDS = 0.2
"""Where the file system has no locks: after writing a mark, until another one at the same time would have shown."""
_HELD = (errno.EACCES, errno.EAGAIN)
_MISSING = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


class FolderPlace:
    """A file in which a lease is kept; see `autopeft.study.lease.Place`.

    Args:
        path: The file, which stays when the lease is given back.
    """

    refuses_late_writes = False
    settle_seconds = 0.0

    def __init__(self, path: Path) -> None:
        self.name = str(path.parent)
        self._path = path
        self._file: int | None = None

    def read(self) -> Mark | None:
        """Return the mark in the file; a damaged one locks nobody out."""
        try:
            return Mark.from_bytes(self._path.read_bytes())
        except OSError:
            return None

    def claim(self, mark: Mark, *, over: Mark | None) -> bool:
        """Write a mark, holding the system's lock; see `Place`."""
        file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        is_ours = False
        try:
            is_locked = _flock(file, fcntl.LOCK_EX)
            if is_locked is not False and self.read() == over:
                content = mark.to_bytes()
                os.ftruncate(file, 0)
                os.pwrite(file, content, 0)
                os.fsync(file)
                if is_locked is None:
                    time.sleep(_UNLOCKED_SETTLE_SECONDS)
                is_ours = os.pread(file, 4096, 0) == content
        finally:
            if is_ours:
                self._file = file
            else:
                os.close(file)
        return is_ours

    def beat(self, mark: Mark) -> None:
        """Touch the file."""
        if self._file is not None:
            os.utime(self._file)

    def give_back(self, *, is_ours: bool) -> None:
        """Empty the file where the mark is still this one's, and free the system's lock."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):  # the disk may be full, or gone: closing frees the lock all the same
                if is_ours:
                    os.ftruncate(file, 0)
            os.close(file)

    def silent_seconds(self) -> float | None:
        """Return the time since the file was touched, by the clock that the file system dates files with."""
        probe = self._path.with_name(f"{self._path.name}.{secrets.token_hex(4)}")
        try:
            touched = self._path.stat().st_mtime
        except OSError:
            return None
        try:
            probe.touch()
            now = probe.stat().st_mtime  # hosts' clocks differ
            probe.unlink()
        except OSError:  # it cannot be written to
            now = time.time()
        return max(0.0, now - touched)

    def is_locked(self) -> bool:
        """Return whether a process, this one included, has the system's lock on the file."""
        try:
            file = os.open(self._path, os.O_RDONLY)
        except OSError:
            return False
        try:
            return _flock(file, fcntl.LOCK_SH) is False
        finally:
            os.close(file)


def _flock(file: int, kind: int) -> bool | None:
    """Lock a file without waiting; return whether that worked, None where the file system has no such locks."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return False
        if error.errno in _MISSING:
            return None
        raise
    return True
