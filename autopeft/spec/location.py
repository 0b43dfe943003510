"""Where a study lies: a local folder, or an address such as `s3://bucket/runs` with a working folder here."""

import hashlib
import os
import unicodedata
from pathlib import Path
from urllib.parse import urlsplit

from autopeft.errors import StudyError
from autopeft.spec.messages import echo


def is_uri(location: str | Path) -> bool:
    """Return whether a location is the address of a storage, as fsspec reads it, and not a path."""
    return "://" in str(location)


def check_output_dir(output_dir: str) -> str:
    """Return an output folder in its usual form.

    Raises:
        ValueError: It holds a password, which would be kept with the study.
    """
    if not is_uri(output_dir):
        return output_dir
    if urlsplit(output_dir).password is not None:
        raise ValueError(
            "output_dir is kept with the study and must hold no password; give it as the storage's own "
            "configuration or environment variables do, such as AWS_SECRET_ACCESS_KEY"
        )
    return output_dir.rstrip("/")


MAX_NAME_BYTES = 255
"""Of a file's or a folder's name on the file systems in use, in UTF-8."""
_RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10))}
"""What no file may be called on Windows, whatever its extension."""
MAX_STUDY_NAME, MAX_STUDY_NAME_BYTES = 100, 200
"""Letters of a study's name, and their bytes: a folder has that name, and what is made beside it adds to it."""


def check_study_name(name: str) -> str:
    """Return a study's name in its usual form, which is a folder's name on every system.

    A letter with an accent can be written as one character or as two; both are the same name.

    Raises:
        ValueError: The name is empty, too long, or cannot be a folder's everywhere.
    """
    name = unicodedata.normalize("NFC", name)
    n_bytes = len(name.encode(errors="replace"))
    if not all(c.isalnum() or c in "-_." or unicodedata.category(c).startswith("M") for c in name):
        raise ValueError("a study name is made of letters, digits, '-', '_' and '.'")
    if not 0 < len(name) <= MAX_STUDY_NAME or n_bytes > MAX_STUDY_NAME_BYTES:
        raise ValueError(
            f"a study name is made of 1 to {MAX_STUDY_NAME} letters and at most {MAX_STUDY_NAME_BYTES} bytes, but "
            f"this one has {len(name)} letters and {n_bytes} bytes"
        )
    if name.endswith(".") or name.partition(".")[0].upper() in _RESERVED:
        raise ValueError(
            "a study name is a folder's name on every system: it must not end with '.', nor be one like CON"
        )
    return name


def check_path(path: str | Path) -> None:
    """Make sure that a path can be one of a file system.

    Raises:
        StudyError: A name in it is too long, or it holds the character NUL.
    """
    for name in Path(path).parts:
        if (n_bytes := len(name.encode(errors="replace"))) > MAX_NAME_BYTES or "\0" in name:
            raise StudyError(
                f"a name in a path has at most {MAX_NAME_BYTES} bytes and no NUL, but {echo(name)} has {n_bytes}; "
                "give a shorter one"
            )


def is_file(path: Path) -> bool:
    """Return whether there is a file; a name that no system takes is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def working_folder(location: str, work_dir: str | None = None) -> Path:
    """Return the local folder of a study: its location, or where the copy of one at an address is worked on.

    Args:
        location: Of the study: a path or an address, which ends with the study's name.
        work_dir: Folder of working folders; without one, each address has its own in the user's cache.

    Raises:
        StudyError: It can be no path.
    """
    check_path(location)
    if not is_uri(location):
        return Path(location)
    location = location.rstrip("/")
    name = location.rpartition("/")[2]
    if work_dir is not None:
        return Path(work_dir) / name
    return cache_folder("studies") / hashlib.sha256(location.encode()).hexdigest()[:16] / name


def cache_folder(kind: str) -> Path:
    """Return where autopeft keeps copies of one kind in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autopeft" / kind
