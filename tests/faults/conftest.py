"""A small disk, and the tiny study of a whole search for the faults that need a model."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.conftest import reviews_csv, study, tiny_bert
from tests.searching.conftest import bench

__all__ = ["bench", "reviews_csv", "study", "tiny_bert"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a folder on a disk of 2 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"mounting is not allowed here: {mounted.stderr.decode().strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)
