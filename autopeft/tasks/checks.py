"""Rows with columns named by role, checked: a bad one is named with its place, and with what to do."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autopeft.errors import DataError
from autopeft.spec.messages import echo, listed
from autopeft.tasks.columns import TEXT_ROLES
from autopeft.tasks.conversations import read_turns
from autopeft.tasks.table import Table

MAX_DECIMAL_CLASSES = 20
"""Different decimal numbers of a text file up to which they are classes (4.5 stars), and not measurements."""
_INTEGER = re.compile(r"0|-?[1-9][0-9]*")
_DECIMAL = re.compile(r"-?(0|[1-9][0-9]*)\.[0-9]+")


@dataclass(frozen=True, kw_only=True)
class _Column:
    """A column under check, and what messages say of it."""

    table: Table
    split: str
    name: str
    role: str
    instead: str

    def at(self, row: int) -> str:
        return f"row {row + 1} (counted from 1) of split {self.split!r}{self.table.place(row)}"

    def refuse_rows(self, bad: Sequence[bool], what: str) -> None:
        """Raise `DataError` that names the first of the bad rows and counts them, where there are any."""
        rows = np.flatnonzero(np.asarray(bad, dtype=bool))
        if not len(rows):
            return
        if len(rows) == len(bad) and self.instead:
            more, way = ", as in all others", f"name another split, or make one: {self.instead}"
        elif len(rows) > 1:
            more, way = f", and in {len(rows) - 1:,} more of {len(bad):,} rows", "drop these rows or fill them in"
        else:
            more, way = "", "drop the row or fill it in"
        raise DataError(
            f"every row must have a {self.role.replace('_', ' ')}, but {self.name!r} {what} in {self.at(int(rows[0]))}"
            f"{more}; {way}"
        )


def by_role(
    table: Table, columns: Mapping[str, str], *, split: str, answered: bool = True, instead: str = ""
) -> pd.DataFrame:
    """Return the rows with columns named by role, checked: texts are not empty, labels are classes.

    Labels become texts (whole numbers without a decimal point, declared classes by name), messages lists of turns. The
    index is the row's place in the split, and is named by it, so that later errors can say where. Conversations must
    be `answered`, unless the answer is what is asked for. `instead` is the setting that makes a split of this role from
    others, such as `splits.test: 0.15`.

    Raises:
        DataError: What a role needs is missing or of the wrong kind; it says in which row, counted from 1.
    """
    known = {str(column): column for column in table.rows.columns}
    missing = [column for column in columns.values() if column not in known]
    if missing:
        way = f"; name another split, or make one: {instead}" if instead else ""
        raise DataError(
            f"every split must have the column {missing[0]!r}, but split {split!r} has {listed(known)}{way}"
        )
    rows = pd.DataFrame(
        {role: table.rows[known[column]].reset_index(drop=True) for role, column in columns.items()}
    ).rename_axis(split)
    for role, name in columns.items():
        column = _Column(table=table, split=split, name=name, role=role, instead=instead)
        if role != "tools":  # a conversation may do without
            column.refuse_rows(rows[role].isna().tolist(), "is missing")
        match role:
            case "messages":
                rows[role] = _conversations(rows[role], column, answered)
            case "label":
                rows[role] = _class_names(rows[role], table.names.get(name), column)
            case "group":
                _check_groups(rows[role], column)
            case _ if role in TEXT_ROLES:
                _check_texts(rows[role], column)
    return rows


def _check_texts(texts: "pd.Series[Any]", column: _Column) -> None:
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(
                f"columns.{column.role} must hold texts, but {column.name!r} holds {echo(text)} in {column.at(row)}; "
                f"name another column, or write the value as text"
            )
    column.refuse_rows([not text.strip() for text in texts], "is empty")
    _check_sound(enumerate(texts), column)


def _check_sound(texts: Iterable[tuple[int, str]], column: _Column) -> None:
    """Refuse halves of characters, which no tokenizer takes and no file in UTF-8 holds; texts come with their row."""
    for row, text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = text[error.start : error.start + 1]
            around = text[max(0, error.start - 20) : error.start + 20]
            raise DataError(
                f"texts must be Unicode, but {column.name!r} holds {half!a}, the half of a character (a lone "
                f"surrogate), in {column.at(row)}: {around!a}; drop the row, or replace the half: "
                "text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')"
            ) from None


def _conversations(values: "pd.Series[Any]", column: _Column, answered: bool) -> "pd.Series[Any]":
    turns = [
        read_turns(value, place=f"{column.name!r} in {column.at(row)}", answered=answered)
        for row, value in enumerate(values)
    ]
    _check_sound(((row, text) for row, conversation in enumerate(turns) for text in _texts(conversation)), column)
    return pd.Series(turns, index=values.index, dtype=object)


def _texts(value: Any) -> list[str]:
    """Return all texts inside a nested value."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for pair in value.items() for part in pair for text in _texts(part)]
    return [text for part in value for text in _texts(part)] if isinstance(value, list | tuple) else []


def _check_groups(groups: "pd.Series[Any]", column: _Column) -> None:
    for row, group in enumerate(groups):
        if _is_nested(group):
            raise DataError(
                f"each row must have one group, but {column.name!r} holds {echo(group)} in {column.at(row)}; name "
                f"another columns.group"
            )
    column.refuse_rows([isinstance(group, str) and not group.strip() for group in groups], "is empty")


def _is_nested(value: Any) -> bool:
    return isinstance(value, list | tuple | dict | set) or getattr(value, "shape", ()) != ()


def _class_names(values: "pd.Series[Any]", names: tuple[str, ...] | None, column: _Column) -> list[str]:
    column.refuse_rows([isinstance(value, str) and not value.strip() for value in values], "is empty")
    if names is not None:
        return [_declared(value, names, row, column) for row, value in enumerate(values)]
    result = [_class_name(value, row, column) for row, value in enumerate(values)]
    _check_sound(enumerate(result), column)
    different = sorted(set(result))
    decimals = [name for name in different if _DECIMAL.fullmatch(name)]
    fractions = [name for name in decimals if float(name) % 1 and repr(float(name)) == name]
    if (
        len(different) > MAX_DECIMAL_CLASSES
        and fractions
        and all(name in decimals or _INTEGER.fullmatch(name) for name in different)
    ):
        raise _continuous(fractions[0], result.index(fractions[0]), column)
    return result


def _class_name(value: Any, row: int, column: _Column) -> str:
    if isinstance(value, float | np.floating):
        if not math.isfinite(value) or value != int(value):
            raise _continuous(value, row, column)
        return str(int(value))
    if _is_nested(value) or isinstance(value, bytes):
        raise DataError(
            f"each row must have one label, but {column.name!r} holds {echo(value)} in {column.at(row)}; "
            f"text-classification takes one class for each text, a word or a number"
        )
    return str(value)


def _continuous(value: object, row: int, column: _Column) -> DataError:
    return DataError(
        f"labels must be classes, but {column.name!r} holds {value} in {column.at(row)}: these are continuous values; "
        f"round them into classes, or name another columns.label"
    )


def _declared(value: Any, names: tuple[str, ...], row: int, column: _Column) -> str:
    if isinstance(value, str) and value in names:
        return value
    if not isinstance(value, str) and not _is_nested(value) and value == int(value) and 0 <= int(value) < len(names):
        return names[int(value)]
    raise DataError(
        f"0 <= {column.name} < {len(names)} must hold, but {column.at(row)} has {echo(value)}: that split is not "
        f"labelled; name another, or make one: {column.instead or 'splits.test: 0.15'}"
    )


def in_order(labels: Iterable[str]) -> list[str]:
    """Return classes in their order, always the same: by number where all are plain integers, else as texts.

    `01` is a code and no plain integer: codes of one length are in the same order either way.
    """
    texts = sorted(set(labels))
    return sorted(texts, key=int) if all(map(_INTEGER.fullmatch, texts)) else texts


def similar_classes(labels: Sequence[str]) -> list[str]:
    """Return a note where classes differ only in case, in spaces, or in how a number is written."""
    alike: dict[object, list[str]] = defaultdict(list)
    for label in labels:
        word = label.strip().casefold()
        is_number = re.fullmatch(r"[+-]?[0-9]+(\.[0-9]*)?", word)
        alike[float(word) if is_number else word].append(label)
    pairs = [" and ".join(map(repr, group)) for group in alike.values() if len(group) > 1]
    return [f"classes that may be one: {listed(pairs)}; write them alike if they are"] if pairs else []


def numbers(
    table: pd.DataFrame, role: str, *, at_least: float = -math.inf, at_most: float = math.inf
) -> NDArray[np.float64]:
    """Return a column of checked examples as numbers, [n_rows]; a text file holds them as texts.

    Args:
        table: From `by_role`.
        role: Of the column.
        at_least: The smallest legal number.
        at_most: The largest legal number.

    Raises:
        DataError: A value is no number, or outside of the limits; it says in which row, counted from 1.
    """
    found = pd.to_numeric(table[role], errors="coerce").to_numpy(dtype=np.float64)
    bad = np.flatnonzero(~(np.isfinite(found) & (found >= at_least) & (found <= at_most)))
    if len(bad):
        limits = "" if at_least == -math.inf and at_most == math.inf else f" from {at_least:g} to {at_most:g}"
        place = f"row {table.index[bad[0]] + 1} (counted from 1) of split {table.index.name!r}"
        more = f", and {len(bad) - 1:,} more of {len(found):,} rows are like it" if len(bad) > 1 else ""
        raise DataError(
            f"columns.{role} must hold numbers{limits}, but {place} holds {echo(table[role].iloc[bad[0]])}{more}; drop "
            "these rows, or name another column"
        )
    return found
