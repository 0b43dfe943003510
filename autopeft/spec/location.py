"""Where a study lies: a local folder, or an address such as `s3://bucket/runs` with a working folder here."""

import hashlib
import os
from pathlib import Path
from urllib.parse import urlsplit


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


def working_folder(location: str, work_dir: str | None = None) -> Path:
    """Return the local folder of a study: its location, or where the copy of one at an address is worked on.

    Args:
        location: Of the study: a path or an address, which ends with the study's name.
        work_dir: Folder of working folders; without one, each address has its own in the user's cache.
    """
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
