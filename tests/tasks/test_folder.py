"""Folders as people have them and as the hub is cloned: shards go together, and what is missing is named."""

import json
from pathlib import Path

import datasets
import pandas as pd
import pytest

from autopeft.errors import DataError
from autopeft.tasks.data import read

FRAME = pd.DataFrame({"text": ["a", "b", "c"], "label": [0, 1, 0]})


def folder(at: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        path = at / name
        path.parent.mkdir(parents=True, exist_ok=True)
        frame = FRAME.assign(text=FRAME["text"] + str(number))
        if path.suffix == ".parquet":
            frame.to_parquet(path)
        elif path.suffix == ".jsonl":
            frame.to_json(path, orient="records", lines=True)
        elif ".csv" in name:
            frame.to_csv(path, index=False)
        else:
            path.write_text("{}")
    return at


def sizes(data: object) -> dict[str, int]:
    return {name: len(table.rows) for name, table in read(data).items()}


SHARDS = ("train-00001-of-00002.parquet", "train-00000-of-00002.parquet", "test-00000-of-00001.parquet")


@pytest.mark.parametrize("inside", ["", "data/", "default/"])
def test_shards_are_put_together_in_order(inside: str, tmp_path: Path) -> None:
    folder(tmp_path, *(f"{inside}{name}" for name in SHARDS), "README.md", "dataset_infos.json", "._train.csv")
    splits = read(tmp_path)
    assert {name: table.rows["text"].tolist() for name, table in splits.items()} == {
        "train": ["a1", "b1", "c1", "a0", "b0", "c0"],
        "test": ["a2", "b2", "c2"],
    }
    assert splits["train"].place(4) == ", row 2 of 'train-00001-of-00002.parquet'"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("train-00000-of-00001-b42a775f407cee45.parquet",), {"train": 3}),
        (("default/train/0000.parquet", "default/train/0001.parquet", "default/test/0000.parquet"), None),
        (("train/a.csv", "train/b.csv", "test/a.csv"), None),
        (("train.csv", "val.jsonl", "state.json", "dataset_infos.json", ".DS_Store"), {"train": 3, "val": 3}),
        (("train.csv.gz", "test.parquet"), {"train": 3, "test": 3}),
    ],
)
def test_usual_folders(names: tuple[str, ...], expected: dict[str, int] | None, tmp_path: Path) -> None:
    assert sizes(folder(tmp_path, *names)) == (expected or {"train": 6, "test": 3})


def test_links_are_followed_once(tmp_path: Path) -> None:
    real = folder(tmp_path / "real", "train.csv")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "train.csv").symlink_to(real / "train.csv")
    (tmp_path / "links" / "back").symlink_to(tmp_path / "links")
    assert sizes(tmp_path / "links") == {"train": 3}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train-00001-of-00003.parquet",), "2 of 3 are missing .* 'train-00000-of-00003'"),
        (("cola/train.parquet", "sst2/train.parquet"), "holds several: cola, sst2; give the path of one"),
        (("train.csv", "train.jsonl"), "both of the split 'train'; remove one"),
        (("train.csv", "data/test.csv"), "also folders with data: data"),
        (("train/pos/a.csv", "train/neg/a.csv", "test/a.csv"), "holds the folders neg, pos"),
        (("train/a.csv", "train/b.jsonl"), "must be of one kind"),
        (("notes.txt",), "holds neither"),
    ],
)
def test_unclear_folders_are_refused(names: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read(folder(tmp_path, *names))


def test_a_shard_alone_and_shards_that_differ(tmp_path: Path) -> None:
    folder(tmp_path, *SHARDS)
    for data in (tmp_path / SHARDS[1], {"train": str(tmp_path / SHARDS[1])}):
        (table,) = read(data).values()
        assert table.notes == (
            "train-00000-of-00002.parquet is shard 1 of 2 of 'train': the others are not read; give their folder to "
            "read all",
        )
    FRAME.rename(columns={"text": "body"}).to_parquet(tmp_path / SHARDS[0])
    with pytest.raises(DataError, match=r"has text, label, and 'train-00001-of-00002\.parquet' has body, label"):
        read(tmp_path)


def test_a_clone_without_its_data(tmp_path: Path) -> None:
    for name in ("train.csv", "train.parquet"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")
        with pytest.raises(DataError, match=r"Git LFS pointer.*git lfs pull"):
            read(tmp_path / name)


def test_classes_and_integers_of_parquet_files(tmp_path: Path) -> None:
    features = datasets.Features({"id": datasets.Value("int64"), "label": datasets.ClassLabel(names=["no", "yes"])})
    dataset = datasets.Dataset.from_dict({"id": [2**60 + 1, None], "label": [1, 0]}, features=features)
    dataset.to_parquet(tmp_path / "train.parquet")
    for data in (tmp_path, {"train": dataset}):
        table = read(data)["train"]
        assert table.names == {"label": ("no", "yes")}
        assert table.rows["id"].tolist() == [2**60 + 1, None]
    indexed = FRAME.set_index(pd.Index(["x", "y", "z"], name="id"))
    indexed.to_parquet(tmp_path / "train.parquet")
    assert read(tmp_path)["train"].rows["id"].tolist() == ["x", "y", "z"]


def test_a_saved_data_set_that_is_damaged(tmp_path: Path) -> None:
    datasets.Dataset.from_pandas(FRAME).save_to_disk(tmp_path)
    assert sizes(tmp_path) == {"all": 3}
    (tmp_path / "state.json").write_text(json.dumps({}))
    with pytest.raises(DataError, match="save it again"):
        read(tmp_path)
