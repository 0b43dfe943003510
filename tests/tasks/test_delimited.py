"""Text with separators: every field is what the file says, or the file is refused with the line at fault."""

import csv
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autopeft.errors import DataError
from autopeft.tasks.data import read
from autopeft.tasks.table import Table


def table(folder: Path, content: str | bytes, name: str = "a.csv") -> Table:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return read(folder / name)["all"]


def test_values_are_the_texts_of_the_file(tmp_path: Path) -> None:
    content = "id,zip,tweet,price,flag,text\n001,02116,1234567890123456789,1.10,TRUE,NA\n002,00501,,1e5,null,None\n"
    rows = table(tmp_path, content).rows
    assert rows.to_csv(index=False) == content


FILES: dict[str, tuple[str | bytes, list[list[str]]]] = {
    "byte-order mark": ("\ufefft,l\na,1\n", [["a", "1"]]),
    "utf-16": ("t,l\né,1\n".encode("utf-16"), [["é", "1"]]),
    "cr": ("t,l\ra,1\rb,0\r", [["a", "1"], ["b", "0"]]),
    "crlf": ('t,l\r\n"a\r\nb",1\r\n', [["a\r\nb", "1"]]),
    "cr cr lf": ("t,l\r\r\na,1\r\r\nb,0\r\r\n", [["a", "1"], ["b", "0"]]),
    "a cr inside a field": ("t,l\na\rb,1\nc,0\n", [["a\rb", "1"], ["c", "0"]]),
    "unicode line ends": ("t,l\na\u2028b\x0b\x85\x1c,1\n", [["a\u2028b\x0b\x85\x1c", "1"]]),
    "empty lines": ("\nt,l\na,1\n\n   \nb,0\n", [["a", "1"], ["b", "0"]]),
    "semicolons": ("t;l\na, b;1,5\n", [["a, b", "1,5"]]),
    "tabs": ("t\tl\na, b\t1\n", [["a, b", "1"]]),
    "said separator": ("sep=;\nt;l\na;1\n", [["a", "1"]]),
    "separators at the end": ("t,l,,\na,1,,\nb,0,,\n", [["a", "1"], ["b", "0"]]),
    "separators behind rows alone": ("t,l\na,1,\nb,0,\n", [["a", "1"], ["b", "0"]]),
    "an index": (",t\n0,a\n1,b\n", [["0", "a"], ["1", "b"]]),
    "one column": ('t\na b\n\n""\n', [["a b"], [""]]),
    "a long field": (f"t,l\n{'x' * 200_000},1\n", [["x" * 200_000, "1"]]),
    "quoting": (
        't,l\n"he said ""a, b""\nand left",1\nsay "hi",0\n',
        [['he said "a, b"\nand left', "1"], ['say "hi"', "0"]],
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_usual_files_are_read(case: str, tmp_path: Path) -> None:
    content, expected = FILES[case]
    assert table(tmp_path, content).rows.to_numpy().tolist() == expected


@pytest.mark.parametrize("separator", ["\t", ","])
@pytest.mark.parametrize("texts", [('"a', '"b'), ('"a', "b"), ('"a', 'b"'), ('"a" x', "b")])
def test_no_row_vanishes_between_quotes_of_texts(texts: tuple[str, str], separator: str, tmp_path: Path) -> None:
    rows = [["good", "1"], [texts[0], "0"], ["fine", "1"], [texts[1], "1"], ["bad", "0"]]
    content = "\n".join(separator.join(row) for row in [["text", "label"], *rows])
    found = table(tmp_path, content, "a.tsv" if separator == "\t" else "a.csv")
    assert found.rows.to_numpy().tolist() == rows
    assert "quotes as plain text, because one that opens in line 3" in found.notes[0]


def test_numbers_of_rows_tell_that_rows_are_inside_quotes(tmp_path: Path) -> None:
    """The test files of GLUE have a number and a sentence, and no label that comes again."""
    content = 'index\tsentence\n0\tfine\n1\t"I loved it.\n2\tIt was great."\n'
    rows = table(tmp_path, content, "a.tsv").rows
    assert rows.to_numpy().tolist() == [["0", "fine"], ["1", '"I loved it.'], ["2", 'It was great."']]


def test_quoted_line_ends_with_separators_are_one_row(tmp_path: Path) -> None:
    found = table(tmp_path, 'text,label\n"Good, but.\nBad.",1\nfine,0\n')
    assert found.rows.to_numpy().tolist() == [["Good, but.\nBad.", "1"], ["fine", "0"]]
    assert "lines 2 to 3 are read as one row" in found.notes[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('t,l\n"a,1\n"a, b",0\n', "a quote that opens in line 2 is followed by more text in line 3; put quotes around"),
        ('t,l\na,1\n"b, c,1\n', "opens in line 3 is never closed, up to line 3"),
        ('t,l\n"a","1"\n"say "hi" to","0"\n', "opens in line 3 is followed by more text in line 3; put quotes"),
        ('t,l\n"he said \\"hi\\", ok",1\n', "line 2 marks quotes with a backslash"),
        ("t,l\na,1\nb, c,0\nd,e,f,0\n", r"the 2 field\(s\) of the header \(t, l\), but line 3 has 3 .*1 more line"),
        ("t,l\n1,a,1\n2,b,0\n", "line 2 has 3 .*the header lacks a name"),
        ("t,l\na,1\nb\n", "line 3 has 1 .*complete the line"),
        ("# made by x\nt,l\na,1\n", "delete the comments"),
        ("t;l|m\na;b|c\n", "no commas, but semicolons and bars"),
        ("t,t\na,1\n", "'t' twice"),
        ("t,l\n", "has none"),
        ("\n \n", "it is empty"),
        ("t,l\na\0,1\n", "line 2 holds a NUL"),
        ("t,l\na,1\ncafé,0\n".encode("cp1252"), r"line 3 holds the byte 0xe9 \(at 11\), which is none; .*iconv"),
        ("t,l\n" + "x" * 9000 + "\n", "complete the line"),
    ],
)
def test_what_cannot_be_read_in_one_way_is_refused(content: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as caught:
        table(tmp_path, content)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".zst"])
def test_compressed_files(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.csv{ending}"
    if ending == ".zst":
        import pyarrow as pa

        with pa.output_stream(str(path), compression="zstd") as stream:
            stream.write(b"t,l\na,01\n")
    else:
        pd.DataFrame({"t": ["a"], "l": ["01"]}).to_csv(path, index=False)
    assert read(path)["all"].rows.to_numpy().tolist() == [["a", "01"]]
    path.write_bytes(b"t,l\na,01\n")
    with pytest.raises(DataError, match="cannot be unpacked"):
        read(path)


NASTY = st.text(st.sampled_from(list("ab ,;\t|\"'\\\n\r\u2028\x85é\ufeff#=")), min_size=1, max_size=12)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(rows=st.lists(st.tuples(NASTY, st.sampled_from(["01", "1", "NA", "x y"])), min_size=1, max_size=6))
def test_any_text_reads_back(rows: list[tuple[str, str]], tmp_path: Path) -> None:
    """What pandas and the csv module write; both leave a CR unquoted, so there every field is quoted."""
    frame = pd.DataFrame(rows, columns=["text", "label"])
    has_return = any("\r" in text for text, _ in rows)
    options: dict[str, Any] = {"index": False, "quoting": csv.QUOTE_ALL if has_return else csv.QUOTE_MINIMAL}
    frame.to_csv(tmp_path / "a.csv", **options)
    frame.to_csv(tmp_path / "a.tsv", sep="\t", **options)
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True, force_ascii=False)
    frame.to_json(tmp_path / "a.json")
    for name in ("a.csv", "a.tsv", "a.parquet", "a.jsonl", "a.json"):
        assert read(tmp_path / name)["all"].rows.to_numpy().tolist() == [list(row) for row in rows]
