"""A small disk, and the tiny study of a whole search for the faults that need a model."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.conftest import reviews_csv, study, tiny_bert
from tests.bench import bench

__all__ = ["bench", "reviews_csv", "study", "tiny_bert"]

MOUNT = ("mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a folder on a disk of 2 MiB.

    Where only root may mount, a process in namespaces of its own does, and the folder is the one that this one sees.
    """
    path = tmp_path / "disk"
    path.mkdir()
    if subprocess.run([*MOUNT, path], capture_output=True).returncode == 0:
        try:
            yield path
        finally:
            subprocess.run(["umount", path], check=True)
        return
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", '"$@" && echo mounted && read -r _', "sh"]
    with subprocess.Popen(
        [*command, *MOUNT, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        said = holder.stdout.readline()
        if said != "mounted\n":
            pytest.skip(f"mounting is not allowed here: {said.strip()}")
        yield Path(f"/proc/{holder.pid}/root{path}")
        holder.stdin.close()  # it ends, and its disk with it
