"""What `autopeft predict` writes reads back as it was, whatever the values are."""

import datetime
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autopeft.cli.table_files import write_table
from autopeft.tasks.data import read

NASTY = st.text(st.sampled_from(list("ab ,;\t|\"'\\\n\r\u2028\u2029\x85\x1cé#=")), min_size=1, max_size=12)


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(rows=st.lists(st.tuples(NASTY, st.sampled_from(["01", "1.10", "", "NA"])), min_size=1, max_size=6))
def test_any_text_reads_back(ending: str, rows: list[tuple[str, str]], tmp_path: Path) -> None:
    frame = pd.DataFrame(rows, columns=["text", "id"], dtype=str)
    path, reason = write_table(frame, tmp_path / f"a{ending}")
    assert not reason
    assert read(path)["all"].rows.to_dict("records") == frame.to_dict("records")
    assert [file.name for file in tmp_path.iterdir() if file.name.endswith(".part")] == []


def test_values_of_every_kind(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "big": pd.Series([2**63 + 1, None], dtype=object),
            "float": [0.1 + 0.2, np.nan],
            "flag": pd.array([True, None], dtype="boolean"),
            "date": [datetime.date(2026, 1, 2), None],
            "nested": [[{"role": "user", "content": "é"}], np.array([1, 2])],
            "half": pd.Series(["a \ud83d", "b"], dtype=object),
        }
    )
    path, _ = write_table(frame, tmp_path / "a.jsonl")
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == [
        {
            "big": 2**63 + 1,
            "float": 0.1 + 0.2,
            "flag": True,
            "date": "2026-01-02",
            "nested": [{"role": "user", "content": "é"}],
            "half": "a \ud83d",
        },
        {"big": None, "float": None, "flag": None, "date": None, "nested": [1, 2], "half": "b"},
    ]
    path, _ = write_table(frame.drop(columns="half"), tmp_path / "a.csv")
    assert read(path)["all"].rows.to_numpy().tolist() == [
        [str(2**63 + 1), repr(0.1 + 0.2), "True", "2026-01-02", '[{"role": "user", "content": "é"}]'],
        ["", "", "", "", "[1, 2]"],
    ]


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_work_is_not_lost_to_a_format_that_cannot_hold_it(ending: str, tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": pd.Series(["x \ud83d", "y"], dtype=object), "b": pd.Series([1, "1"], dtype=object)})
    path, reason = write_table(frame, tmp_path / f"a{ending}")
    assert path.name == "a.jsonl"
    assert reason
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]
    assert read(path)["all"].rows.to_dict("records") == frame.to_dict("records")
