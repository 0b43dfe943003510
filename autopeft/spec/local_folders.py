"""Where folders are in this process: on a node of a cluster, the driver's may be elsewhere than their names say."""

import hashlib
from functools import cache
from pathlib import Path

_PLACES: dict[str, Path] = {}


def local_folder(name: str) -> Path:
    """Return the path of a folder here: where it was brought to, or what its name says.

    Raises:
        RuntimeError: The name begins with the home folder of a user who has none.
    """
    return _PLACES.get(name) or Path(name).expanduser()


def is_at(name: str, path: Path) -> None:
    """Have `local_folder` answer so from now on, in this process."""
    _PLACES[name] = path


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file; it is read once in a process, and again where its size or time has changed."""
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns)


@cache
def _sha256(path: Path, size: int, modified_ns: int) -> str:  # noqa: ARG001  # the key of the cache
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
