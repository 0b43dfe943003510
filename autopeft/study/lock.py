"""One search at a time in a study's folder: a lock that survives a crash, and that says who holds it.

The system's own lock on the file (flock) is freed when its holder dies, however that happens. Not every file system
has it, and some have it for each host alone; the holder therefore writes itself into the file, and touches the file
every few seconds. A lock is taken over when its holder has died on this machine, or has not touched it for
`STALE_SECONDS` on another one.
"""

import errno
import fcntl
import json
import os
import secrets
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from autopeft.errors import StudyLockedError
from autopeft.study.process import ProcessMark

PATIENCE_SECONDS = 0.5
"""How long a search waits for a lock: somebody may just be asking whether it is held."""
TOUCH_SECONDS = 20.0
"""How often a holder touches its lock."""
STALE_SECONDS = 180.0
"""How long a lock of another host stays untouched before it is taken over."""
_SETTLE_SECONDS = 0.2
_HELD = (errno.EACCES, errno.EAGAIN)
_MISSING = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


class FolderLock:
    """The lock of a folder.

    Args:
        path: Its file, which stays when the lock is freed.

    Attributes:
        was_left: Whether the holder before this one died with it.
    """

    def __init__(self, path: Path) -> None:
        self.was_left = False
        self._path = path
        self._file: int | None = None
        self._stop = threading.Event()
        self._touching: threading.Thread | None = None

    def acquire(self) -> None:
        """Take the lock; nothing where this object holds it.

        Raises:
            StudyLockedError: Somebody else holds it.
        """
        end = time.monotonic() + PATIENCE_SECONDS
        while self._file is None:
            why = self._try()
            if why and time.monotonic() > end:
                way_out = "wait for it, or give this one another study_name"
                raise StudyLockedError(f"one search at a time may write a study, but {why}; {way_out}")
            if why:
                time.sleep(0.05)

    def release(self) -> None:
        """Free the lock; nothing where this object does not hold it."""
        if self._file is None:
            return
        self._stop.set()
        if self._touching is not None:
            self._touching.join()
        file, self._file = self._file, None
        with suppress(OSError):  # the disk may be full, or gone: closing frees the lock all the same
            os.ftruncate(file, 0)
        os.close(file)

    def is_held(self) -> bool:
        """Return whether somebody holds the lock, this object included."""
        if self._file is not None:
            return True
        try:
            file = os.open(self._path, os.O_RDONLY)
        except OSError:
            return False
        try:
            return _flock(file, fcntl.LOCK_SH) is False or bool(self._holder(file))
        finally:
            os.close(file)

    def _try(self) -> str:
        """Take the lock, or return who keeps it from us."""
        file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            locked = _flock(file, fcntl.LOCK_EX)
            why = self._holder(file)
            if locked is False:
                return why or f"another one holds {self._path.parent}"
            was_left = _read_mark(file) is not None
            if not why:
                why = self._write(file, alone=locked is True)
            if not why:
                self._file, self.was_left = file, was_left
                self._stop = threading.Event()
                self._touching = threading.Thread(target=self._touch, name="autopeft-lock", daemon=True)
                self._touching.start()
            return why
        finally:
            if self._file is None:
                os.close(file)

    def _write(self, file: int, *, alone: bool) -> str:
        """Write this process into the file; where nothing keeps others from doing so too, return who was later."""
        values = {**ProcessMark.here().to_dict(), "since": time.time(), "token": secrets.token_hex(8)}
        content = json.dumps(values).encode()
        os.ftruncate(file, 0)
        os.pwrite(file, content, 0)
        os.fsync(file)
        if not alone:
            time.sleep(_SETTLE_SECONDS)
            if os.pread(file, 4096, 0) != content:
                return self._holder(file) or f"another one begins in {self._path.parent} at the same time"
        return ""

    def _holder(self, file: int) -> str:
        """Return in words who holds the lock by what the file says; empty where nobody does."""
        if (found := _read_mark(file)) is None:
            return ""
        mark, since = found
        since_words = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since))
        words = f"another one holds {self._path.parent} ({mark}, since {since_words})"
        is_gone = mark.is_gone()
        if is_gone is None:  # on another machine
            left = STALE_SECONDS - (self._now() - os.fstat(file).st_mtime)
            return f"{words}, and its lock can be taken over in {left:.0f} s if it has died" if left > 0 else ""
        return "" if is_gone else words

    def _now(self) -> float:
        """Return the time by the clock that the file system dates files with: hosts' clocks differ."""
        probe = self._path.with_name(f"{self._path.name}.{secrets.token_hex(4)}")
        try:
            probe.touch()
            now = probe.stat().st_mtime
            probe.unlink()
        except OSError:  # it cannot be written to
            return time.time()
        return now

    def _touch(self) -> None:
        while not self._stop.wait(TOUCH_SECONDS):
            with suppress(OSError):
                if self._file is not None:
                    os.utime(self._file)


def _read_mark(file: int) -> tuple[ProcessMark, float] | None:
    """Return which process has written itself into a lock, and when; None where nobody has, or somebody is at it."""
    try:
        values: dict[str, Any] = json.loads(os.pread(file, 4096, 0))
        return ProcessMark.from_dict(values), float(values["since"])
    except (ValueError, KeyError, TypeError):
        return None


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
