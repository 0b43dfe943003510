"""JSON in the shapes that people, pandas and the hub write; what is no table is refused with its line or row."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from autopeft.errors import DataError
from autopeft.tasks.data import read

ROWS = [{"text": "a", "label": 1}, {"text": "b", "label": 0}, {"text": "c", "label": 1}]
FRAME = pd.DataFrame(ROWS)


def rows_of(folder: Path, content: str, name: str = "a.json") -> list[dict[str, Any]]:
    (folder / name).write_text(content, encoding="utf-8", newline="")
    (table,) = read(folder / name).values()
    return table.rows.to_dict("records")


SHAPES = {
    "records": FRAME.to_json(orient="records"),
    "columns": FRAME.to_json(orient="columns"),
    "index": FRAME.to_json(orient="index"),
    "split": FRAME.to_json(orient="split"),
    "tight": json.dumps(FRAME.to_dict("tight")),
    "lists": json.dumps(FRAME.to_dict("list")),
    "lines": FRAME.to_json(orient="records", lines=True),
    "one after the other": " ".join(map(json.dumps, ROWS)),
    "indented": json.dumps(ROWS, indent=2),
    "data": json.dumps({"version": "1", "data": ROWS}),
    "one split": json.dumps({"train": FRAME.to_dict("list")}),
    "the hub's server": json.dumps({"features": [{}], "rows": [{"row_idx": 0, "row": row} for row in ROWS], "n": 3}),
    "byte-order mark and crlf": "\ufeff" + FRAME.to_json(orient="records", lines=True).replace("\n", "\r\n"),
}


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.ndjson"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_reads_the_same(shape: str, name: str, tmp_path: Path) -> None:
    assert rows_of(tmp_path, SHAPES[shape], name) == ROWS


def test_pandas_own_names_of_rows_are_kept(tmp_path: Path) -> None:
    named = FRAME.set_index(pd.Index(["x", "y", "z"]))
    expected = [{"index": name, **row} for name, row in zip("xyz", ROWS, strict=True)]
    for orient in ("index", "columns", "split"):
        assert rows_of(tmp_path, named.to_json(orient=orient)) == expected
    assert [row["index"] for row in rows_of(tmp_path, FRAME.to_json(orient="table"))] == [0, 1, 2]


def test_splits_of_one_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"train": ROWS, "test": ROWS[:1]}))
    assert {name: len(table.rows) for name, table in read(tmp_path / "a.json").items()} == {"train": 3, "test": 1}
    with pytest.raises(DataError, match="holds train, test; give its path"):
        read({"train": tmp_path / "a.json"})


def test_one_row_stays_one_row(tmp_path: Path) -> None:
    for row in (
        {"text": "a", "label": 1},
        {"messages": [{"role": "user", "content": "x"}], "id": 3},
        {"prompt": "a", "completion": "b", "tools": [{"name": "f"}]},
    ):
        assert rows_of(tmp_path, json.dumps(row), "a.jsonl") == [row]


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85", "\u000b", "\u000c", "\u001c"])
def test_unicode_line_ends_end_no_row(sign: str, tmp_path: Path) -> None:
    rows = [{"text": f"a{sign}b", "label": number} for number in range(3)]
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    assert rows_of(tmp_path, content, "a.jsonl") == rows


def test_values_stay_exact(tmp_path: Path) -> None:
    rows = [{"id": 2**53 + 1, "n": 1, "f": 1.5}, {"id": None, "n": "1", "f": 2.0}, {"id": 10**30, "n": 1.0, "f": 1e300}]
    found = rows_of(tmp_path, "\n".join(map(json.dumps, rows)), "a.jsonl")
    assert found == rows
    assert [type(row["n"]) for row in found] == [int, str, float]
    (tmp_path / "b.jsonl").write_text('{"a": NaN}\n{"b": 1}\n')
    assert read(tmp_path / "b.jsonl")["all"].rows.isna().to_numpy().tolist() == [[True, True], [True, False]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"a": 1},\n{"a": 2},\n]', "line 3, column 1: Expecting value; delete the comma too many"),
        ("{'a': 1}", "line 1, column 2: .*put double quotes"),
        ('{"a": 1}\n{"a": "x\n', "line 2, column 9"),
        ('{"a": 1}\n{"a": 1, "a": 2}\n', r"row 2 \(line 2\) has 'a' twice"),
        ('[{"a": 1}, 5]', "every row must be an object, but row 2 is 5"),
        ('{"a": 1}\n[5]\n', r"row 2 \(line 2\) is \[5\]"),
        ("3", "must hold rows, but holds 3; write one object for each row"),
        ("[[1, 2], [3, 4]]", "no names for their values"),
        ('{"a": [1, 2], "b": [1]}', "'a' has 2 and 'b' 1"),
        ('{"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 2}}', "whether a, b are rows or columns"),
        ('{"columns": ["a"], "data": [[1], [1, 2]]}', "row 2 must have a value for each of a"),
        ("[" * 100_000, "line 1: .*recursion"),
        ('{"a": ' + "1" * 5000 + "}", "line 1: .*4300.*shorten"),
        ("[]", "has none"),
    ],
)
def test_what_is_no_table_is_refused(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        rows_of(tmp_path, content)
