"""Tables as files that read back as they were: csv, tsv, jsonl and parquet."""

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any, TextIO

from autopeft.spec.messages import first_line

if TYPE_CHECKING:
    import pandas as pd

EXTENSIONS = (".csv", ".tsv", ".jsonl", ".parquet")


def write_table(frame: "pd.DataFrame", path: Path) -> tuple[Path, str]:
    """Write a table as the ending of its path says; whoever sees the file sees all of it.

    What costs minutes to compute is not lost to a format that cannot hold it: it is written as jsonl beside.

    Returns:
        The file that was written, and why it is another one than asked for, if it is.
    """
    try:
        _write(frame, path)
    except (ValueError, TypeError, OverflowError) as error:  # arrow's errors, and halves of characters
        if path.suffix.lower() == ".jsonl":
            raise
        path, reason = path.with_suffix(".jsonl"), first_line(error)
        _write(frame, path)
        return path, reason
    return path, ""


def _write(frame: "pd.DataFrame", path: Path) -> None:
    part = path.with_name(f".{token_hex(8)}.part")
    try:
        match path.suffix.lower():
            case ".parquet":
                frame.rename(columns=str).to_parquet(part, index=False)
            case ".jsonl":
                with part.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
                    file.writelines(_json_lines(frame))
            case extension:
                with part.open("w", encoding="utf-8", newline="") as file:
                    write_delimited(frame, file, separator="\t" if extension == ".tsv" else ",")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_delimited(frame: "pd.DataFrame", file: TextIO, *, separator: str) -> None:
    """Write text with separators: fields are quoted where they need it, missing values are empty."""
    plain = csv.writer(file, delimiter=separator, lineterminator="\n")
    # The csv module leaves a CR unquoted, and reads it as the end of a row.
    quoted = csv.writer(file, delimiter=separator, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in (map(str, frame.columns), *_rows(frame)):
        fields = [_field(value) for value in row]
        (quoted if any("\r" in field for field in fields) else plain).writerow(fields)


def _field(value: Any) -> str:
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return "" if value is None else str(value)


def _json_lines(frame: "pd.DataFrame") -> Iterator[str]:
    names = [str(column) for column in frame.columns]
    for row in _rows(frame):
        line = json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False, default=str)
        # Many readers take these for the end of a line; errors="backslashreplace" does it for lone surrogates.
        for character in ("\u2028", "\u2029", "\x85"):
            line = line.replace(character, f"\\u{ord(character):04x}")
        yield f"{line}\n"


def _rows(frame: "pd.DataFrame") -> Iterator[tuple[Any, ...]]:
    """Yield rows of plain values; what is missing is None."""
    for row in frame.itertuples(index=False, name=None):
        yield tuple(map(_plain, row))


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # arrays and scalars of numpy
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return None if math.isnan(value) else value
    return None if type(value).__name__ in ("NaTType", "NAType") else value
