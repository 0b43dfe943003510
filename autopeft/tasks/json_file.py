"""JSON as people, pandas and the hub write it: one object a line, or one document in any of several shapes.

Values stay what they are: integers of any size, and numbers beside texts in one column.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from autopeft.errors import DataError
from autopeft.spec.messages import echo, listed
from autopeft.tasks.columns import GUESSES
from autopeft.tasks.splits import ALIASES
from autopeft.tasks.table import Source, Table
from autopeft.tasks.text_file import read_text

Row = dict[str, Any]
_SPLITS = frozenset(name for names in ALIASES.values() for name in names)
_USUAL = frozenset(name for names in GUESSES.values() for name in names)
_WAY = 'write one object for each row, as DataFrame.to_json("data.jsonl", orient="records", lines=True) does'


class _Twice(Row):
    """An object of the file that has a key twice."""

    key = ""


def _object(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        row = _Twice(row)
        row.key = next(key for key in keys if keys.count(key) > 1)
    return row


def read_json(path: Path) -> dict[str, Table]:
    """Read a file into its splits; without splits it is one called `all`.

    Raises:
        DataError: It is no JSON, or no table; it says in which line or row.
    """

    def refuse(why: str) -> DataError:
        return DataError(f"data {str(path)!r} cannot be read as {path.suffix[1:].lower()}: {why}")

    documents = list(_documents(read_text(path), refuse))
    if len(documents) > 1:
        lines = [line for line, _ in documents]
        rows = [value for _, value in documents]
        return {"all": _table(rows, path.name, refuse, lines)}
    document = documents[0][1]
    if isinstance(document, Mapping) and _is_splits(document):
        return {name: _table(_rows(part, refuse), path.name, refuse) for name, part in document.items()}
    return {"all": _table(_rows(document, refuse), path.name, refuse)}


def _documents(text: str, refuse: Callable[[str], DataError]) -> Iterator[tuple[int, Any]]:
    """Yield each value of the file with its line: one document, or as many as there are rows."""
    decoder = json.JSONDecoder(object_pairs_hook=_object)
    at, line = 0, 1
    while True:
        start = at
        while at < len(text) and text[at] in " \t\r\n":
            at += 1
        if at == len(text):
            return
        line += text.count("\n", start, at)
        try:
            value, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            place = f"line {error.lineno}, column {error.colno}: {error.msg}"
            raise refuse(f"{place}{_hint(text, error.pos)}") from None
        except (ValueError, RecursionError) as error:  # numbers of more than 4,300 digits, thousands of brackets
            raise refuse(f"line {line}: {error}; shorten that value") from None
        yield line, value
        line += text.count("\n", at, end)
        at = end


def _hint(text: str, at: int) -> str:
    before, here = text[:at].rstrip(), text[at : at + 1]
    if (before.endswith(",") and here in ("]", "}", '"', "")) or here == ",":
        return "; delete the comma too many"
    if here == "'":
        return "; put double quotes around texts"
    return "; check that line"


def _is_splits(document: Mapping[str, Any]) -> bool:
    parts = list(document.values())
    tables = [_is_records(part) for part in parts]
    named = {name.lower() for name in document} <= _SPLITS and all(isinstance(part, list | dict) for part in parts)
    return bool(parts) and (named or (len(parts) > 1 and all(tables)))


def _is_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, Mapping) for row in value)


def _is_served(value: Any) -> bool:
    """Tell whether these are rows as the hub's server of rows gives them."""
    return _is_records(value) and all({"row_idx", "row"} <= set(row) for row in value)


def _rows(document: Any, refuse: Callable[[str], DataError]) -> list[Any]:
    """Return the rows of one document."""
    if isinstance(document, list):
        if document and all(isinstance(row, list) for row in document):
            raise refuse(f"its rows have no names for their values; {_WAY}")
        return [row["row"] for row in document] if _is_served(document) else document
    if not isinstance(document, Mapping):
        raise refuse(f"it must hold rows, but holds {echo(document)}; {_WAY}")
    return _rows_of_object(document, refuse)


def _rows_of_object(document: Mapping[str, Any], refuse: Callable[[str], DataError]) -> list[Any]:
    if not document:
        return []
    parts = list(document.values())
    if {"columns", "data"} <= set(document) and all(isinstance(document[key], list) for key in ("columns", "data")):
        return _from_split(document, refuse)
    if any(key.lower() in _USUAL and not isinstance(value, list | Mapping) for key, value in document.items()):
        return [document]
    if all(isinstance(part, list) for part in parts) and not _is_records(parts[0]):
        return _from_columns({name: dict(enumerate(part)) for name, part in document.items()}, refuse)
    if all(isinstance(part, Mapping) for part in parts):
        return _from_objects(document, refuse)
    records = ["rows"] if _is_served(document.get("rows")) else [n for n, part in document.items() if _is_records(part)]
    if len(records) == 1 and records[0].lower() not in GUESSES["messages"]:
        return _rows(document[records[0]], refuse)
    if records or not any(isinstance(part, list | Mapping) for part in parts):
        return [document]
    raise refuse(f"it must hold rows, but is one object with {listed(document)}; {_WAY}")


def _from_split(document: Mapping[str, Any], refuse: Callable[[str], DataError]) -> list[Row]:
    """Read pandas' orients `split` and `tight`."""
    columns, data = [str(column) for column in document["columns"]], document["data"]
    for row, values in enumerate(data, start=1):
        if not isinstance(values, list) or len(values) != len(columns):
            raise refuse(f"row {row} must have a value for each of {listed(columns)}, but is {echo(values)}; {_WAY}")
    index = document.get("index") or range(len(data))
    return _with_index([dict(zip(columns, values, strict=True)) for values in data], index)


def _from_objects(document: Mapping[str, Mapping[str, Any]], refuse: Callable[[str], DataError]) -> list[Row]:
    """Read pandas' orients `columns` and `index`: rows are numbered, or else there are more rows than columns."""
    inner = list(dict.fromkeys(key for part in document.values() for key in part))
    outer_counts, inner_counts = (all(key.isdecimal() for key in keys) for keys in (document, inner))
    if outer_counts or (not inner_counts and len(document) > len(inner)):
        return _with_index([dict(row) for row in document.values()], list(document))
    if inner_counts or len(inner) > len(document):
        return _from_columns(document, refuse)
    raise refuse(f"it does not tell whether {listed(document)} are rows or columns; {_WAY}")


def _from_columns(document: Mapping[str, Mapping[Any, Any]], refuse: Callable[[str], DataError]) -> list[Row]:
    """Read columns, each with its values by row."""
    (first, values), *_ = document.items()
    for name, other in document.items():
        if list(other) != list(values):
            raise refuse(
                f"columns must have the same rows, but {first!r} has {len(values)} and {name!r} {len(other)}, or "
                f"others; {_WAY}"
            )
    return _with_index([{name: part[key] for name, part in document.items()} for key in values], list(values))


def _with_index(rows: list[Row], index: Sequence[Any]) -> list[Row]:
    """Return rows with what they are called as a column `index`, where that says more than their number."""
    counted = [str(key) for key in index] == [str(number) for number in range(len(rows))]
    if counted or len(index) != len(rows) or any("index" in row for row in rows):
        return rows
    return [{"index": key, **row} for key, row in zip(index, rows, strict=True)]


def _table(
    rows: Sequence[Any], name: str, refuse: Callable[[str], DataError], lines: Sequence[int] | None = None
) -> Table:
    for number, row in enumerate(rows, start=1):
        place = f"row {number}" if lines is None else f"row {number} (line {lines[number - 1]})"
        if not isinstance(row, dict):
            raise refuse(f"every row must be an object, but {place} is {echo(row)}; {_WAY}")
        if isinstance(row, _Twice):
            raise refuse(f"an object must have each key once, but {place} has {row.key!r} twice; rename or drop one")
    columns = dict.fromkeys(key for row in rows for key in row)
    frame = pd.DataFrame({key: _column([row.get(key) for row in rows]) for key in columns})
    return Table(rows=frame, sources=(Source(name=name, n_rows=len(rows), lines=lines),))


def _column(values: list[Any]) -> "pd.Series[Any]":
    """Return values as they are; as a dtype of their own only where they all are of one kind that it holds exactly."""
    kinds = {type(value) for value in values}
    exact = (
        kinds in ({bool}, {float})
        or (kinds == {int} and all(-(2**63) <= value < 2**63 for value in values))
        or (kinds == {str} and all(_is_sound(value) for value in values))
    )
    return pd.Series(values) if exact else pd.Series(values, dtype=object)


def _is_sound(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
