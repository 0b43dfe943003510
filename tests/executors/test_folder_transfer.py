"""Folders that travel: what a node has, what it is sent, what stays in its cache. Pieces are kept in a dict here."""

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autopeft.errors import ExecutorError
from autopeft.executors import folder_transfer
from autopeft.executors.folder_transfer import UNUSED_SECONDS, FolderTransfer, Lacking, settle
from autopeft.spec import local_folders as places
from autopeft.spec.local_folders import local_folder

CONTENT = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 40, "empty.txt": b""}
"""The weights are several pieces of 1,000 bytes."""


class Store:
    """What the driver has put."""

    def __init__(self) -> None:
        self.pieces: dict[int, bytes] = {}
        self.n_got = 0

    def put(self, piece: bytes) -> int:
        self.pieces[len(self.pieces)] = piece
        return len(self.pieces) - 1

    def get(self, number: int) -> bytes:
        self.n_got += 1
        return self.pieces[number]


@pytest.fixture(autouse=True)
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Be a node in a working folder of its own, with a cache of its own; return where that keeps folders."""
    (tmp_path / "node").mkdir()
    monkeypatch.chdir(tmp_path / "node")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(folder_transfer, "PIECE_BYTES", 1000)
    monkeypatch.setattr(places, "_PLACES", {})
    return tmp_path / "cache" / "autopeft" / "folders"


@pytest.fixture
def packed(tmp_path: Path) -> FolderTransfer:
    """Return what a driver takes along that calls a folder `model`."""
    folder = tmp_path / "driver"
    folder.mkdir()
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content)
    (folder / "pytorch_model.bin").write_bytes(b"not taken along")
    found = FolderTransfer()
    found.add("model", [folder / name for name in CONTENT])
    return found


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def sent(packed: FolderTransfer) -> Store:
    store = Store()
    packed.unpack(["model"], store.put)
    return store


def settle_all(packed: FolderTransfer, store: Store) -> Lacking | None:
    return settle(packed.folders, store.get)


def key(packed: FolderTransfer) -> str:
    """Return what the node's copy is called."""
    return packed.folders[0].key[:32]


def test_a_node_that_has_the_folder_is_sent_nothing(packed: FolderTransfer, node: Path, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "driver", "model")
    assert settle(packed.folders, Store().get) is None
    assert local_folder("model") == Path("model")
    assert not node.exists()


@pytest.mark.parametrize(
    "there", [{}, {**CONTENT, "config.json": b"{ }"}, {**CONTENT, "model.safetensors": b"other"}, "same size"]
)
def test_a_node_that_lacks_it_says_so_and_then_has_it_in_its_cache(
    packed: FolderTransfer, node: Path, there: Any
) -> None:
    if there:
        Path("model").mkdir()
        weights = CONTENT["model.safetensors"]
        for name, its in ({**CONTENT, "model.safetensors": weights[::-1]} if there == "same size" else there).items():
            Path("model", name).write_bytes(its)
    assert settle(packed.folders, Store().get) == Lacking(names=("model",))
    store = sent(packed)
    assert settle(packed.folders, store.get) is None
    assert content(local_folder("model")) == CONTENT
    assert store.n_got == len(store.pieces) == 12
    packed.pack()
    assert settle(packed.folders, Store().get) is None, "the next search finds it there"
    assert [path.name for path in node.iterdir() if path.is_dir()] == [key(packed)]


def test_a_copy_that_was_damaged_is_sent_again(packed: FolderTransfer, node: Path) -> None:
    assert settle_all(packed, store := sent(packed)) is None
    os.truncate(local_folder("model") / "model.safetensors", 5000)
    packed.pack()
    assert settle(packed.folders, store.get) == Lacking(names=("model",))
    assert settle_all(packed, sent(packed)) is None
    assert content(local_folder("model")) == CONTENT


def test_a_folder_that_changes_under_way_is_refused(packed: FolderTransfer, node: Path, tmp_path: Path) -> None:
    (tmp_path / "driver" / "model.safetensors").write_bytes(b"trained on meanwhile")
    with pytest.raises(ExecutorError, match=r"must stay as it was.* model\.safetensors in it has changed"):
        settle_all(packed, sent(packed))
    assert not (node / key(packed)).exists(), "nothing that is wrong looks whole"


def test_a_node_without_room_says_which_and_for_what(packed: FolderTransfer, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path("file").absolute()))
    with pytest.raises(ExecutorError, match=r"model \(10\.0 KiB\) must be written to .* not a directory; make room"):
        settle_all(packed, sent(packed))


def bring(packed: FolderTransfer, store: Store, pipe: Any, n_pieces: int | None) -> None:
    """Be another worker of the node, which says which pieces it has got, and gets no more than so many."""

    def get(number: int) -> bytes:
        if store.n_got == n_pieces:
            signal.pause()
        pipe.send(number)
        return store.get(number)

    settle(packed.folders, get)
    pipe.send("done")
    pipe.close()


def start(packed: FolderTransfer, store: Store, n_pieces: int | None = None) -> tuple[Any, Any]:
    here, there = multiprocessing.get_context("fork").Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=bring, args=(packed, store, there, n_pieces))
    process.start()
    there.close()
    return process, here


def test_workers_of_a_node_share_one_copy_and_one_that_is_killed_leaves_no_part(
    packed: FolderTransfer, node: Path
) -> None:
    store = sent(packed)
    first, pipe = start(packed, store, n_pieces=2)
    pipe.recv()
    pipe.recv()  # it writes, holds the lock, and goes no further
    second, other = start(packed, store)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    third, another = start(packed, store)
    received: list[list[Any]] = [[], []]
    for process, end, got in zip((second, third), (other, another), received, strict=True):
        while not got or got[-1] != "done":
            got.append(end.recv())
        process.join()
    first.join()
    assert sorted(map(len, received)) == [1, 13], "one of them got all 12 pieces, the other none"
    assert settle(packed.folders, Store().get) is None
    assert content(local_folder("model")) == CONTENT
    assert [path.name for path in node.iterdir() if path.is_dir()] == [key(packed)]


def test_what_no_search_has_used_for_a_month_goes_when_another_folder_comes(packed: FolderTransfer, node: Path) -> None:
    for name, seconds in (("old", UNUSED_SECONDS + 60), ("old.part", UNUSED_SECONDS + 60), ("recent", 60)):
        (node / name).mkdir(parents=True)
        (node / name / "config.json").touch()
        os.utime(node / name, (time.time() - seconds,) * 2)
    settle_all(packed, sent(packed))
    assert {path.name for path in node.iterdir() if path.is_dir()} == {key(packed), "recent"}
