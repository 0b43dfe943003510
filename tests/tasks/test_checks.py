"""Checked rows: a bad one is named with its place and a way out; labels have the same names whatever holds them."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest

from autopeft.errors import DataError
from autopeft.tasks.checks import by_role, in_order, similar_classes
from autopeft.tasks.data import read
from autopeft.tasks.table import Table
from tests.tasks.generated import reviews

ROLES = {"text": "text", "label": "label"}
HALF = "good \ud83d film"


def test_declared_classes_become_their_names() -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    dataset = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    rows = by_role(read(dataset)["all"], {"text": "text", "label": "label"}, split="all")
    assert rows["label"].tolist() == ["yes", "no"]
    unlabelled = datasets.Dataset.from_dict({"text": ["a"], "label": [-1]}, features=features)
    with pytest.raises(DataError, match=r"not labelled.*splits.test: 0.15"):
        by_role(read(unlabelled)["all"], ROLES, split="eval", instead="splits.test: 0.15")


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
        by_role(Table(rows=rows), {"text": "text", "label": "label", "group": "film"}, split="all")


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
    table = Table(rows=pd.DataFrame({"t": ["x", "y", "z"], "l": values}))
    assert by_role(table, {"text": "t", "label": "l"}, split="all")["label"].tolist() == expected


def labelled(values: Any) -> list[str]:
    rows = pd.DataFrame({"text": [f"t{n}" for n in range(len(values))], "label": values})
    return in_order(by_role(Table(rows=rows), ROLES, split="all")["label"])


@pytest.mark.parametrize("dtype", ["int64", "Int64", "float64", "category", "object", "str", "int64[pyarrow]"])
def test_one_kind_of_label_has_one_name_and_order_in_every_dtype(dtype: str, tmp_path: Path) -> None:
    values = pd.Series([10, 2, 0, 1]).astype("str" if dtype == "str" else "int64").astype(dtype)
    assert labelled(values) == ["0", "1", "2", "10"]
    rows = pd.DataFrame({"text": list("abcd"), "label": values})
    rows.to_parquet(tmp_path / "a.parquet")
    assert labelled(read(tmp_path / "a.parquet")["all"].rows["label"]) == ["0", "1", "2", "10"]
    if dtype != "float64":
        rows.to_csv(tmp_path / "a.csv", index=False)
        rows.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
        for name in ("a.csv", "a.jsonl"):
            assert labelled(read(tmp_path / name)["all"].rows["label"]) == ["0", "1", "2", "10"]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["10", "9", "-1"], ["-1", "9", "10"]),
        (["010", "001", "002"], ["001", "002", "010"]),
        (["1", "01"], ["01", "1"]),
        (["10", "9", "x"], ["10", "9", "x"]),
        (["1.0", "10.0", "2.0"], ["1.0", "10.0", "2.0"]),
        (["TRUE", "FALSE", "NA", "1e5"], ["1e5", "FALSE", "NA", "TRUE"]),
        (["1_0", "9"], ["1_0", "9"]),
    ],
)
def test_classes_have_one_order(labels: list[str], expected: list[str]) -> None:
    assert in_order(labels) == in_order(labels[::-1]) == expected


def test_classes_that_may_be_one_are_noted() -> None:
    assert similar_classes(["a", "b", "10"]) == []
    (note,) = similar_classes(["1", "1.0", "Good", "good ", "x"])
    assert "'1' and '1.0', 'Good' and 'good '" in note


def test_class_codes_of_a_file_stay_and_measurements_are_refused(tmp_path: Path) -> None:
    (tmp_path / "stars.csv").write_text("text,label\n" + "".join(f"t{n},{n % 10 / 2}\n" for n in range(40)))
    assert labelled(read(tmp_path / "stars.csv")["all"].rows["label"])[:3] == ["0.0", "0.5", "1.0"]
    (tmp_path / "scores.csv").write_text("text,label\n" + "".join(f"t{n},{n / 7}\n" for n in range(1, 40)))
    with pytest.raises(DataError, match=r"holds 0\.14285714285714285 in row 1 .*line 2 of 'scores.csv': .*continuous"):
        by_role(read(tmp_path / "scores.csv")["all"], ROLES, split="all")


def test_bad_rows_are_counted_and_named_by_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,label\n"a\nb",1\n,0\n ,1\nd,0\n')
    message = (
        r"'text' is empty in row 2 \(counted from 1\) of split 'all', line 4 of 'a.csv', and in 1 more of 4 rows; drop"
    )
    with pytest.raises(DataError, match=message):
        by_role(read(tmp_path / "a.csv")["all"], ROLES, split="all")
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": 1}\n\n{"text": "b"}\n')
    with pytest.raises(DataError, match=r"'label' is missing in row 2 .*line 3 of 'a.jsonl'; drop the row"):
        by_role(read(tmp_path / "a.jsonl")["all"], ROLES, split="all")


def test_a_split_without_labels_says_how_to_make_one() -> None:
    for rows in (pd.DataFrame({"text": ["a"], "label": [None]}), pd.DataFrame({"text": ["a"]})):
        with pytest.raises(DataError, match=r"name another split, or make one: splits.test: 0.15"):
            by_role(Table(rows=rows), ROLES, split="dev", instead="splits.test: 0.15")


@pytest.mark.parametrize("column", ["text", "label", "messages"])
def test_half_a_character_is_named_and_the_advice_helps(column: str) -> None:
    values: dict[str, Any] = {"text": ["a", "b"], "label": ["x", "y"]}
    values |= (
        {"messages": [[{"role": "user", "content": text}] for text in ("a", HALF)]} if column == "messages" else {}
    )
    rows = pd.DataFrame({name: pd.Series(part, dtype=object) for name, part in values.items()})
    if column != "messages":
        rows.at[1, column] = HALF
    with pytest.raises(DataError, match=rf"'{column}' holds '\\ud83d'.* in row 2 .*'good \\ud83d film'") as caught:
        by_role(Table(rows=rows), {column: column}, split="all", answered=False)
    str(caught.value).encode()
    assert HALF.encode("utf-16", "surrogatepass").decode("utf-16", "replace") == "good \ufffd film"


def test_messages_fit_a_screen() -> None:
    rows = pd.DataFrame({"text": ["a"] * 2, "label": [["x" * 9000], ["y"]]})
    with pytest.raises(DataError) as caught:
        by_role(Table(rows=rows), ROLES, split="all")
    assert len(str(caught.value)) < 500


def test_columns_that_are_numbers_are_found() -> None:
    rows = pd.DataFrame([["good", 1], ["bad", 0]])
    assert by_role(Table(rows=rows), {"text": "0", "label": "1"}, split="all").to_dict("list") == {
        "text": ["good", "bad"],
        "label": ["1", "0"],
    }
