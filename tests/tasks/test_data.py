import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest

from autopeft.errors import DataError
from autopeft.tasks.data import Table, by_role, find_columns, read
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


def test_words_that_look_missing_are_words(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\nNA,None\nnull,yes\n")
    rows = by_role(read(tmp_path / "a.csv")["all"], {"text": "text", "label": "label"}, split="all")
    assert rows.to_dict("list") == {"text": ["NA", "null"], "label": ["None", "yes"]}


def test_declared_classes_become_their_names() -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    dataset = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    rows = by_role(read(dataset)["all"], {"text": "text", "label": "label"}, split="all")
    assert rows["label"].tolist() == ["yes", "no"]
    unlabelled = datasets.Dataset.from_dict({"text": ["a"], "label": [-1]}, features=features)
    with pytest.raises(DataError, match=r"not labelled.*splits.test: 0.15"):
        by_role(read(unlabelled)["all"], {"text": "text", "label": "label"}, split="test")


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
        (pd.DataFrame([["a", "b"]], columns=["t", "t"]), "'t' twice"),
    ):
        with pytest.raises(DataError, match=message):
            read(data)


def test_a_name_that_the_hub_lacks_says_both_ways_out() -> None:
    with pytest.raises(DataError, match=r"neither an existing path nor a data set that the hub gave.*\.csv"):
        read("nobody/nothing")


CLASSIFICATION = {"required": ("text", "label"), "optional": ("text_pair", "group")}


@pytest.mark.parametrize(
    ("available", "given", "expected"),
    [
        (["text", "label"], None, {"text": "text", "label": "label"}),
        (["id", "Sentence", "Sentiment"], None, {"text": "Sentence", "label": "Sentiment"}),
        (["premise", "hypothesis", "label"], None, {"text": "premise", "text_pair": "hypothesis", "label": "label"}),
        (["a", "b", "class"], {"text": "b"}, {"text": "b", "label": "class"}),
        (["text", "stars"], {"label": "stars"}, {"text": "text", "label": "stars"}),
    ],
)
def test_columns_are_guessed_where_obvious(available: list[str], given: Any, expected: dict[str, str]) -> None:
    assert find_columns(available, given, **CLASSIFICATION) == expected


@pytest.mark.parametrize(
    ("available", "given", "message"),
    [
        (["review", "stars"], None, "columns.label must be given.*review, stars"),
        (["text", "content", "label"], None, "text, content could be it"),
        (["text", "label"], {"text": "txt"}, "columns.text must be a column.*'txt'; did you mean 'text'"),
        (["text", "label"], {"txt": "text"}, "columns.txt is not a known key; did you mean 'text'"),
        (["text", "label"], {"text": "text", "label": "text"}, "'text' is used twice"),
    ],
)
def test_unclear_columns_are_refused(available: list[str], given: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        find_columns(available, given, **CLASSIFICATION)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("text", "  ", r"'text' is empty in row 3"),
        ("text", None, r"'text' is missing in row 3"),
        ("text", 5, r"must hold texts, but 'text' holds 5 in row 3"),
        ("label", None, r"'label' is missing in row 3"),
        ("label", "", r"'label' is empty in row 3"),
        ("label", 0.5, r"continuous values"),
        ("label", [0, 1], r"one label"),
        ("film", None, r"'film' is missing in row 3"),
    ],
)
def test_a_bad_row_is_named(column: str, value: object, message: str) -> None:
    rows = reviews(10).astype(object)
    rows.at[2, column] = value
    with pytest.raises(DataError, match=message):
        by_role(Table(rows=rows, names={}), {"text": "text", "label": "label", "group": "film"}, split="all")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1, 10], ["0", "1", "10"]),
        ([0.0, 1.0, 10.0], ["0", "1", "10"]),
        (np.array([0, 1, 10], dtype=np.int8), ["0", "1", "10"]),
        ([True, False, True], ["True", "False", "True"]),
        (["a", "b", "c"], ["a", "b", "c"]),
    ],
)
def test_labels_become_texts(values: Any, expected: list[str]) -> None:
    table = Table(rows=pd.DataFrame({"t": ["x", "y", "z"], "l": values}), names={})
    assert by_role(table, {"text": "t", "label": "l"}, split="all")["label"].tolist() == expected
