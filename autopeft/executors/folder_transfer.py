"""Folders of the driver that workers read, such as a model's: they travel to the nodes that lack them.

A node has a folder where its name leads to the same files there, byte by byte. A node that lacks it says so, and only
then does the driver put the files into the object store of Ray, in pieces. The node writes them to a cache of its own,
where they stay for the next search; all workers of the node read them from there.

Nothing here knows Ray: pieces are put and got by functions that are handed in.
"""

import fcntl
import hashlib
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autopeft.errors import ExecutorError
from autopeft.spec.local_folders import is_at, sha256
from autopeft.spec.location import cache_folder
from autopeft.spec.units import format_bytes

PIECE_BYTES = 64 * 2**20
"""Of a file that travel at a time: what the driver and a node hold of it in memory."""
UNUSED_SECONDS = 30 * 24 * 3600.0
"""After which a folder in a node's cache that no search has used goes, when another one comes."""
_PART = ".part"


@dataclass(frozen=True, kw_only=True)
class File:
    """A file of a folder."""

    name: str
    n_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder as a worker hears of it.

    Attributes:
        name: As the study gives it.
        pieces: What the content of each file is got by, in order; None where no node has asked for it.
    """

    name: str
    files: tuple[File, ...]
    pieces: tuple[tuple[Any, ...], ...] | None = None

    @property
    def key(self) -> str:
        """Return what tells its content from any other's."""
        return hashlib.sha256("\n".join(f"{file.name}:{file.sha256}" for file in self.files).encode()).hexdigest()

    @property
    def n_bytes(self) -> int:
        """Return the size of all files."""
        return sum(file.n_bytes for file in self.files)


@dataclass(frozen=True, kw_only=True)
class Lacking:
    """The answer of a worker whose node has not all folders, by their names."""

    names: tuple[str, ...]


class FolderTransfer:
    """The driver's side: which folders there are, and their content once a node has asked for it.

    Attributes:
        folders: What every worker is told.
    """

    def __init__(self) -> None:
        self.folders: tuple[Folder, ...] = ()
        self._files: dict[str, tuple[Path, ...]] = {}

    def add(self, name: str, files: Iterable[Path]) -> None:
        """Take a folder along, of which these files count."""
        self._files[name] = paths = tuple(sorted(files))
        found = tuple(File(name=path.name, n_bytes=path.stat().st_size, sha256=sha256(path)) for path in paths)
        others = tuple(folder for folder in self.folders if folder.name != name)
        self.folders = (*others, Folder(name=name, files=found))

    def unpack(self, names: Sequence[str], put: Callable[[bytes], Any]) -> None:
        """Put the content of folders where nodes can get it."""
        self.folders = tuple(
            replace(folder, pieces=tuple(tuple(map(put, _pieces(path))) for path in self._files[folder.name]))
            if folder.name in names and folder.pieces is None
            else folder
            for folder in self.folders
        )

    def pack(self) -> None:
        """Let go of what was put: a node that comes later asks again."""
        self.folders = tuple(replace(folder, pieces=None) for folder in self.folders)

    def describe(self, names: Sequence[str]) -> str:
        """Return folders in words, with their size."""
        return " and ".join(f"{f.name} ({format_bytes(f.n_bytes)})" for f in self.folders if f.name in names)


def settle(folders: Sequence[Folder], get: Callable[[Any], bytes]) -> Lacking | None:
    """Make the folders be where `local_folder` says in this process, or return which this node lacks.

    Args:
        folders: What the driver has.
        get: Returns a piece by what `Folder.pieces` has of it.

    Raises:
        ExecutorError: They cannot be written here, or have changed since the driver read them.
    """
    lacking = []
    for folder in folders:
        if (path := _find(folder)) is None and folder.pieces is not None:
            path = _bring(folder, get)
        if path is None:
            lacking.append(folder.name)
        else:
            is_at(folder.name, path)
    return Lacking(names=tuple(lacking)) if lacking else None


def _find(folder: Folder) -> Path | None:
    """Return where a folder is on this node already."""
    with suppress(OSError, RuntimeError):  # no name for this system, a user without a home
        own = Path(folder.name).expanduser()
        if _holds(own, folder):
            return own
    cached = _cached(folder)
    if not _holds(cached, folder):
        return None
    with suppress(OSError):
        os.utime(cached)  # in use
    return cached


def _cached(folder: Folder) -> Path:
    return cache_folder("folders") / folder.key[:32]


def _holds(path: Path, folder: Folder) -> bool:
    """Return whether a folder on this node has the same content."""
    try:
        same_sizes = all((path / file.name).stat().st_size == file.n_bytes for file in folder.files)
        return same_sizes and all(sha256(path / file.name) == file.sha256 for file in folder.files)
    except OSError:
        return False


def _bring(folder: Folder, get: Callable[[Any], bytes]) -> Path:
    """Write a folder to this node's cache, unless another worker has done so meanwhile."""
    target = _cached(folder)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target.parent):
            if not _holds(target, folder):
                _drop_unused(target.parent)
                part = target.with_name(target.name + _PART)
                for left in (part, target):  # by a worker that was killed; damaged since
                    shutil.rmtree(left, ignore_errors=True)
                part.mkdir()
                _write(folder, part, get)
                part.replace(target)
    except OSError as error:
        raise ExecutorError(
            f"{folder.name} ({format_bytes(folder.n_bytes)}) must be written to {target} on {socket.gethostname()}, "
            f"which lacks it, but {(error.strerror or str(error)).lower()}; make room there, or set XDG_CACHE_HOME"
        ) from error
    return target


def _write(folder: Folder, target: Path, get: Callable[[Any], bytes]) -> None:
    assert folder.pieces is not None
    for file, pieces in zip(folder.files, folder.pieces, strict=True):
        digest = hashlib.sha256()
        with (target / file.name).open("wb") as written:
            for piece in map(get, pieces):
                digest.update(piece)
                written.write(piece)
        if digest.hexdigest() != file.sha256:
            raise ExecutorError(
                f"{folder.name} must stay as it was when the search began, but {file.name} in it has changed since; "
                "start the search again"
            )


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


@contextmanager
def _alone(cache: Path) -> Iterator[None]:
    """Keep other workers of this node out for as long as the block runs; the system frees the lock of a dead one."""
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _drop_unused(cache: Path) -> None:
    oldest = time.time() - UNUSED_SECONDS
    for path in cache.iterdir():
        if path.is_dir() and path.stat().st_mtime < oldest:
            shutil.rmtree(path, ignore_errors=True)
