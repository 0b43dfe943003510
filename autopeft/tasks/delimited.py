"""Tables of text with separators (csv, tsv): every field is the text that stands in the file.

Quotes are read as RFC 4180 has them: around a whole field, and doubled inside it. Files of scraped sentences, such as
those of GLUE, hold quotes that belong to the text and are never closed; rows would vanish between two of them. A file
is read without quoting where reading with it fails, or hides rows, and each of its lines has the header's fields.
"""

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from autopeft.errors import DataError
from autopeft.spec.messages import echo, listed
from autopeft.tasks.table import Source, Table
from autopeft.tasks.text_file import read_text

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
"""What can stand between fields, in words."""
_ADVICE = 'put quotes around whole fields and double those inside ("he said ""hi"""), or save the data as jsonl'


@dataclass(frozen=True, slots=True)
class _Record:
    """Fields of one row, and the lines from which to which it goes, counted from 1."""

    fields: Sequence[str]
    first: int
    last: int


class _QuoteError(ValueError):
    """A quote that opens in line `first` is not closed where a field ends; that is seen in line `last`."""

    def __init__(self, first: int, last: int, what: str) -> None:
        super().__init__(what)
        self.first, self.last = first, last


def read_delimited(path: Path, native: str) -> Table:
    """Read a file whose ending says that `native` separates its fields; another separator is told by the header.

    Raises:
        DataError: A line has too many or too few fields, or a quote is not closed; it says in which line.
    """
    refuse = _refusal(path)
    text, mark = _mark_lone_returns(read_text(path))
    notes: list[str] = []
    lines = [line.rstrip("\r\n") for line in _physical(text)]
    start = next(number for number, line in enumerate(lines) if line.strip())
    said = re.fullmatch(r'"?sep=(.)"?', lines[start])  # a line for Excel
    separator = said[1] if said else _separator(lines[start], native, refuse)
    if separator != native:
        notes.append(f"{path.name} is read with {SEPARATORS.get(separator, repr(separator))} between fields")
    lines[start] = "" if said else lines[start]
    text = text.replace(said[0], "", 1) if said else text
    records = _choose(text, lines, separator, notes, path.name, refuse)
    if not records:
        raise refuse("it has no header")
    header, *rows = _without_empty_ends(records, notes, path.name)
    _check_widths(header, rows, separator, refuse)
    if mark:
        rows = [_Record([field.replace(mark, "\r") for field in row.fields], row.first, row.last) for row in rows]
    frame = pd.DataFrame([row.fields for row in rows], columns=list(header.fields), dtype=str)
    source = Source(name=path.name, n_rows=len(rows), lines=[row.first for row in rows])
    return Table(rows=frame, sources=(source,), notes=tuple(notes))


def _refusal(path: Path) -> Callable[[str], DataError]:
    return lambda why: DataError(f"data {str(path)!r} cannot be read as {path.suffix[1:].lower()}: {why}")


def _physical(text: str) -> Iterator[str]:
    """Yield lines with their ends: LF, CR LF or CR, and no other character that Unicode calls a line end."""
    return iter(io.StringIO(text, newline=""))


def _separator(header: str, native: str, refuse: Callable[[str], DataError]) -> str:
    bare = re.sub(r'"[^"]*"', "", header)
    found = [separator for separator in SEPARATORS if separator in bare]
    if native in found or not found:
        return native
    if len(found) > 1:
        raise refuse(
            f"its header has no {SEPARATORS[native]}, but {' and '.join(SEPARATORS[one] for one in found)}; save it "
            f"with {SEPARATORS[native]} between fields"
        )
    return found[0]


def _choose(
    text: str, lines: Sequence[str], separator: str, notes: list[str], name: str, refuse: Callable[[str], DataError]
) -> list[_Record]:
    """Return the header and the rows, with quoting where that is how the file was written."""
    plain = _plain(lines, separator)
    try:
        records = list(_quoted(text, separator))
        hidden = [record for record in records if _hides_rows(record, lines, separator, len(records[0].fields))]
        found = next((record for record in hidden if _look_like_rows(record, records, lines, separator)), None)
        if hidden and not found and plain is not None:  # else the file was surely written with quotes
            notes.append(
                f"{name}: lines {hidden[0].first} to {hidden[0].last} are read as one row, because they are inside "
                f"quotes ({len(hidden)} such rows); if they are several rows, double the quotes"
            )
        if not found:
            return records
        first, last, why = found.first, found.last, "is closed only in"
    except _QuoteError as error:
        first, last, why = error.first, error.last, str(error)
        if any('\\"' in line for line in lines[first - 1 : last]):
            raise refuse(f"line {first} marks quotes with a backslash; {_ADVICE}") from None
    if plain is None:
        raise refuse(f"a quote that opens in line {first} {why} line {last}; {_ADVICE}")
    notes.append(
        f"{name} is read with quotes as plain text, because one that opens in line {first} {why} line {last}, and "
        f"every line has the header's {len(plain[0].fields)} fields"
    )
    return plain


def _mark_lone_returns(text: str) -> tuple[str, str]:
    """Return the text with another character for each CR that belongs to a field, and that character where needed.

    The csv module ends a row at a CR alone. Where the header ends otherwise, such a CR is part of a text.
    """
    ends = re.search(r"\r*\n|\r", text)
    lone = re.compile(r"\r(?!\r*\n)")
    if ends is None or ends[0] == "\r" or not lone.search(text):
        return text, ""
    mark = next(chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in text)
    return lone.sub(mark, text), mark


def _quoted(text: str, separator: str) -> Iterator[_Record]:
    """Yield records with quoting, strictly; empty lines are none."""
    reader = csv.reader(_physical(text), delimiter=separator, strict=True)
    limit = csv.field_size_limit(2**31 - 1)
    first, n_fields = 1, 0
    try:
        for fields in reader:
            if fields and (n_fields < 2 or len(fields) > 1 or fields[0].strip()):
                n_fields = n_fields or len(fields)
                yield _Record(fields, first, reader.line_num)
            first = reader.line_num + 1
    except csv.Error as error:
        why = "is never closed, up to" if "end of data" in str(error) else "is followed by more text in"
        raise _QuoteError(first, reader.line_num, why) from None
    finally:
        csv.field_size_limit(limit)


def _plain(lines: Sequence[str], separator: str) -> list[_Record] | None:
    """Return the records as they are without quoting; None where that is not how the file was written.

    Every line must have as many fields as the header, and quotes around whole fields must be the exception.
    """
    split = [(line.split(separator), number) for number, line in enumerate(lines, start=1) if line.strip()]
    records = [_Record(fields, number, number) for fields, number in split]
    if not records or any(len(record.fields) != len(records[0].fields) for record in records):
        return None
    whole = sum(any(re.fullmatch('".*"', field) for field in record.fields) for record in records[1:])
    if whole > len(records) / 2:
        return None
    names = [name[1:-1].replace('""', '"') if re.fullmatch('".*"', name) else name for name in records[0].fields]
    return [_Record(names, records[0].first, records[0].last), *records[1:]]


def _hides_rows(record: _Record, lines: Sequence[str], separator: str, n_fields: int) -> bool:
    """Tell whether a record has several lines, each with all the fields of a row."""
    inside = lines[record.first - 1 : record.last]
    return len(inside) > 1 < n_fields and all(line.count(separator) == n_fields - 1 for line in inside)


def _look_like_rows(hidden: _Record, records: Sequence[_Record], lines: Sequence[str], separator: str) -> bool:
    """Tell whether the lines inside a record have, in some column, what other rows have: their labels, or numbers."""
    inside = [line.split(separator) for line in lines[hidden.first - 1 : hidden.last]]
    others = [record.fields for record in records[1:] if record.first == record.last]
    return any(
        all(row[at] in values and '"' not in row[at] for row in inside)
        or all(value.isdecimal() for value in (*values, *(row[at] for row in inside)))
        for at, values in enumerate(map(set, zip(*others, strict=False)))
    )


def _without_empty_ends(records: list[_Record], notes: list[str], name: str) -> list[_Record]:
    """Return records without the columns at the end that have neither a name nor a value: trailing separators."""
    named = max((at for at, field in enumerate(records[0].fields, start=1) if field.strip()), default=0)
    longer = [record for record in records if len(record.fields) > named]
    if not named or not longer or any(field.strip() for record in longer for field in record.fields[named:]):
        return records
    notes.append(f"{name}: separators at the end of lines, with neither a name nor a value behind them, are left out")
    return [_Record(record.fields[:named], record.first, record.last) for record in records]


def _check_widths(header: _Record, rows: Sequence[_Record], separator: str, refuse: Callable[[str], DataError]) -> None:
    n_fields = len(header.fields)
    wrong = [row for row in rows if len(row.fields) != n_fields]
    if not wrong:
        return
    more = f", and {len(wrong) - 1:,} more line(s) differ" if len(wrong) > 1 else ""
    got = len(wrong[0].fields)
    if header.fields[0].startswith("#") and n_fields == 1:
        way = "delete the comments before the header"
    elif len(wrong) == len(rows) and all(len(row.fields) == n_fields + 1 for row in wrong):
        way = "the header lacks a name; if the first column numbers the rows, begin the header with a name for it"
    elif got > n_fields:
        way = f"put quotes around a text that holds {SEPARATORS.get(separator, repr(separator))}"
    else:
        way = "complete the line, or delete it"
    raise refuse(
        f"every line must have the {n_fields} field(s) of the header ({listed(header.fields)}), but line "
        f"{wrong[0].first} has {got} ({echo(separator.join(wrong[0].fields))}){more}"
        f"; {way}"
    )
