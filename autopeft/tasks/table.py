"""A table: rows as the data has them, and where each of them stands, for messages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from autopeft.errors import DataError
from autopeft.spec.messages import listed


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """A file that rows come from.

    Attributes:
        lines: The line that each row begins in, counted from 1; None where rows are not told by lines.
    """

    name: str
    n_rows: int
    lines: Sequence[int] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Rows of one split as the data has them.

    Attributes:
        names: Class names by column, where the data set declares them.
        sources: The files of the rows, in their order; nothing for data that is no file.
        notes: What people should know about how the data was read.
    """

    rows: pd.DataFrame
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sources: tuple[Source, ...] = ()
    notes: tuple[str, ...] = ()

    def place(self, row: int) -> str:
        """Return `, line 4 of 'reviews.csv'` for a row counted from 0, or nothing where that is not known."""
        for source in self.sources:
            if row < source.n_rows:
                if source.lines is not None:
                    return f", line {source.lines[row]} of {source.name!r}"
                return f", row {row + 1} of {source.name!r}" if len(self.sources) > 1 else ""
            row -= source.n_rows
        return ""


def join(tables: Sequence[Table], names: Sequence[str]) -> Table:
    """Put the files of one split together.

    Raises:
        DataError: They do not have the same columns, or declare different classes.
    """
    if len(tables) == 1:
        return tables[0]
    first = tables[0]
    for table, name in zip(tables[1:], names[1:], strict=True):
        if list(table.rows.columns) != list(first.rows.columns):
            raise DataError(
                f"the files of one split must have the same columns, but {names[0]!r} has "
                f"{listed(first.rows.columns)}, and {name!r} has {listed(table.rows.columns)}; make them equal"
            )
        if table.names != first.names:
            raise DataError(
                f"the files of one split must declare the same classes, but {names[0]!r} and {name!r} do not; "
                "write them anew"
            )
    return Table(
        rows=pd.concat([table.rows for table in tables], ignore_index=True),
        names=first.names,
        sources=tuple(source for table in tables for source in table.sources),
        notes=tuple(dict.fromkeys(note for table in tables for note in table.notes)),
    )
