import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

from autopeft.errors import DataError
from autopeft.tasks.data import read
from tests.tasks.generated import reviews

WRITERS: dict[str, Callable[[pd.DataFrame, Path], Any]] = {
    "reviews.csv": lambda rows, path: rows.to_csv(path, index=False),
    "reviews.tsv": lambda rows, path: rows.to_csv(path, index=False, sep="\t"),
    "reviews.json": lambda rows, path: path.write_text(json.dumps(rows.to_dict("records"))),
    "reviews.jsonl": lambda rows, path: rows.to_json(path, orient="records", lines=True),
    "reviews.parquet": lambda rows, path: rows.to_parquet(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_file_format_reads_the_same(tmp_path: Path, name: str) -> None:
    rows = reviews(20)
    WRITERS[name](rows, tmp_path / name)
    table = read(tmp_path / name)["all"]
    assert table.rows.to_dict("records") == rows.to_dict("records")


def test_objects_and_folders_read_the_same(tmp_path: Path) -> None:
    rows = reviews(20)
    dataset = datasets.Dataset.from_pandas(rows)
    both = datasets.DatasetDict({"train": dataset, "test": dataset.select(range(5))})
    both.save_to_disk(tmp_path / "saved")
    (tmp_path / "files").mkdir()
    rows.to_csv(tmp_path / "files" / "train.csv", index=False)
    rows[:5].to_csv(tmp_path / "files" / "test.csv", index=False)
    for data in (both, str(tmp_path / "saved"), tmp_path / "files", {"train": rows, "test": rows[:5]}):
        splits = read(data)
        assert set(splits) == {"train", "test"}
        assert splits["train"].rows["text"].tolist() == rows["text"].tolist()
        assert len(splits["test"].rows) == 5
    assert read(rows)["all"].rows.equals(read(dataset)["all"].rows)


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("gone.csv", None, "gone.csv' is not there"),
        ("reviews.xlsx", "x", r"must end with one of \.csv"),
        ("reviews.json", "{'a': 1}", "cannot be read as json"),
        ("reviews.jsonl", "[1, 2]", "cannot be read as jsonl"),
        ("reviews.csv", "", "cannot be read as csv"),
        ("reviews.csv", "text,label\n", "'all' has none"),
    ],
)
def test_unreadable_data_is_refused(tmp_path: Path, path: str, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / path).write_text(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / path)


def test_what_is_no_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for data, message in (
        (tmp_path / "empty", "holds neither"),
        (7, "but got int"),
        ({}, "at least one split"),
        ({"text": ["a"], "label": [1]}, "give pandas.DataFrame"),
        (datasets.Dataset.from_dict({"text": ["a"]}).to_iterable_dataset(), "IterableDataset; give its to_pandas"),
        ("text,label\ngood,1\n" * 900, r"^.{,400}$"),
        (pd.DataFrame([["a", "b"]], columns=["t", "t"]), "'t' twice"),
    ):
        with pytest.raises(DataError, match=message):
            read(data)


def test_a_name_that_the_hub_lacks_says_both_ways_out() -> None:
    with pytest.raises(DataError, match=r"neither an existing path nor a data set that the hub gave.*\.csv"):
        read("nobody/nothing")
