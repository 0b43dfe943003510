"""Reading data sets: files, folders, the hub and objects in; checked tables with columns named by role out."""

import importlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from autopeft.errors import DataError
from autopeft.spec.messages import first_line, nearest, unknown_key
from autopeft.tasks.conversations import read_turns

EXTENSIONS = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("text", "text_pair"),
)
"""Column names that mean two texts, as common data sets write them."""
GUESSES = {
    "text": ("text", "sentence", "review", "content", "document", "comment", "tweet", "snippet", "body", "utterance"),
    "label": ("label", "labels", "target", "class", "category", "sentiment"),
    "prompt": ("prompt", "instruction", "question", "query", "input"),
    "completion": ("completion", "response", "answer", "output"),
    "messages": ("messages", "conversation", "conversations", "chat"),
}
"""Column names that mean a role where nothing is said; compared without case."""
TEXT_ROLES = ("text", "text_pair", "prompt", "completion")
"""Roles whose columns hold texts."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Rows of one split as the data has them.

    Attributes:
        names: Class names by column, where the data set declares them.
    """

    rows: pd.DataFrame
    names: Mapping[str, tuple[str, ...]]


def read(data: Any) -> dict[str, Table]:
    """Read a data set into its splits; data without splits is one split called `all`.

    Args:
        data: A path (csv, tsv, json, jsonl, parquet, a folder of such files named by split, a saved
            data set), a hub id (`owner/name`, or `owner/name:configuration`), a `Dataset`, a `DatasetDict`, a
            DataFrame, or a mapping of split names to any of these.

    Raises:
        DataError: There is nothing to read, or it cannot be read.
    """
    if isinstance(data, str | Path):
        splits = _read_path(data)
    elif isinstance(data, Mapping):
        splits = {str(name): _table(part) for name, part in data.items()}
    else:
        splits = {"all": _table(data)}
    for name, table in splits.items():
        if table.rows.empty:
            raise DataError(f"data must have rows, but split {name!r} has none")
        twice = table.rows.columns[table.rows.columns.duplicated()]
        if len(twice):
            raise DataError(f"columns must have different names, but split {name!r} has {twice[0]!r} twice; rename one")
    if not splits:
        raise DataError(f"data must have at least one split, but got {data!r}")
    return splits


def _table(part: Any) -> Table:
    if isinstance(part, str | Path):
        path = Path(part)
        if not path.is_file():
            raise DataError(f"data must be an existing file, but got {part!r}; check the path")
        return _read_file(path)
    if isinstance(part, pd.DataFrame):
        return Table(rows=part.reset_index(drop=True), names={})
    if hasattr(part, "features") and hasattr(part, "to_pandas"):
        names = {
            column: tuple(f.names)
            for column, f in part.features.items()
            if hasattr(f, "names") and hasattr(f, "str2int")
        }
        return Table(rows=part.to_pandas().reset_index(drop=True), names=names)
    raise DataError(
        f"data must be a path, a hub id, a Dataset, a DatasetDict or a DataFrame, but got {type(part).__name__}"
    )


def _read_path(data: str | Path) -> dict[str, Table]:
    path = Path(data).expanduser()
    if path.is_file():
        return {"all": _read_file(path)}
    if path.is_dir():
        return _read_folder(path)
    text = str(data)
    if path.suffix.lower() in EXTENSIONS or text.startswith(("/", ".", "~")) or text.count("/") > 1:
        raise DataError(f"data must be an existing file or folder, but {text!r} is not there; check the path")
    return _read_hub(text)


def _read_file(path: Path) -> Table:
    extension = path.suffix.lower()
    if extension not in EXTENSIONS:
        raise DataError(
            f"data must end with one of {', '.join(EXTENSIONS)}, but got {str(path)!r}; convert it, or rename it"
        )
    try:
        return Table(rows=_parse(path, extension), names={})
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise DataError(f"data {str(path)!r} cannot be read as {extension[1:]}: {error}; check the file") from None


def _parse(path: Path, extension: str) -> pd.DataFrame:
    if extension in (".csv", ".tsv"):
        # Only an empty field is missing: "NA", "null" and "None" are words, and may be labels.
        return pd.read_csv(path, sep="," if extension == ".csv" else "\t", keep_default_na=False, na_values=[""])
    if extension == ".parquet":
        return pd.read_parquet(path)
    text = path.read_text(encoding="utf-8")
    if text.lstrip().startswith("["):
        rows = json.loads(text)
    else:
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("every row must be an object")
    return pd.DataFrame(rows)


def _read_folder(path: Path) -> dict[str, Table]:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        loaded = importlib.import_module("datasets").load_from_disk(str(path))
        return (
            {str(k): _table(v) for k, v in loaded.items()} if isinstance(loaded, Mapping) else {"all": _table(loaded)}
        )
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in EXTENSIONS)
    if not files:
        raise DataError(
            f"a data folder must hold a saved data set or files ending with {', '.join(EXTENSIONS)}, but {str(path)!r} "
            f"holds neither"
        )
    stems = [file.stem for file in files]
    if len(set(stems)) < len(stems):
        raise DataError(
            f"the files of a data folder must have different names, but {str(path)!r} holds {', '.join(stems)}"
        )
    return {file.stem: _read_file(file) for file in files}


def _read_hub(name: str) -> dict[str, Table]:
    datasets = importlib.import_module("datasets")
    identifier, _, configuration = name.partition(":")
    try:
        loaded = datasets.load_dataset(identifier, configuration or None)
    except Exception as error:  # the library raises a dozen kinds, all of which mean the same here
        reason = first_line(error)
        raise DataError(
            f"data {name!r} is neither an existing path nor a data set that the hub gave ({reason}); check the name, "
            f"or give a path that ends with {', '.join(EXTENSIONS)}"
        ) from None
    return {str(split): _table(part) for split, part in loaded.items()}


def find_columns(
    available: Sequence[str], given: Mapping[str, str] | None, *, required: Sequence[str], optional: Sequence[str]
) -> dict[str, str]:
    """Return the column of each role: as given, or guessed where it is obvious.

    Raises:
        DataError: A role or column is unknown, two roles share a column, or a required role stays open.
    """
    roles = [*required, *optional]
    columns = dict(given or {})
    for role, column in columns.items():
        if role not in roles:
            raise DataError(unknown_key(f"columns.{role}", roles))
        if column not in available:
            raise DataError(
                f"columns.{role} must be a column of the data, but got {column!r}{nearest(str(column), available)}; "
                f"the data has {', '.join(available)}"
            )
        if list(columns.values()).count(column) > 1:
            raise DataError(f"each role must have its own column, but {column!r} is used twice in columns")
    if "text" not in columns and "text_pair" not in columns and "text_pair" in roles:
        columns |= _guess_pair(available, columns)
    for role in required:
        if role not in columns:
            free = [column for column in available if column not in columns.values()]
            matches = [column for column in free if column.lower() in GUESSES.get(role, ())]
            if len(matches) != 1:
                why = f"{', '.join(matches)} could be it" if matches else "none has an obvious name"
                raise DataError(
                    f"columns.{role} must be given, because {why}; the data has {', '.join(available)}; "
                    f"set columns.{role} to one of them"
                )
            columns[role] = matches[0]
    return columns


def _guess_pair(available: Sequence[str], taken: Mapping[str, str]) -> dict[str, str]:
    free = {column.lower(): column for column in available if column not in taken.values()}
    found = [pair for pair in PAIRS if pair[0] in free and pair[1] in free]
    return {"text": free[found[0][0]], "text_pair": free[found[0][1]]} if len(found) == 1 else {}


def by_role(table: Table, columns: Mapping[str, str], *, split: str, answered: bool = True) -> pd.DataFrame:
    """Return the rows with columns named by role, checked: texts are not empty, labels are classes.

    Labels become texts (integers without a decimal point, declared classes by name), messages lists of turns. The
    index is the row's place in the split, and is named by it, so that later errors can say where. Conversations must
    be `answered`, unless the answer is what is asked for.

    Raises:
        DataError: What a role needs is missing or of the wrong kind; it says in which row, counted from 1.
    """
    missing = [column for column in columns.values() if column not in table.rows]
    if missing:
        have = ", ".join(map(str, table.rows.columns))
        raise DataError(f"every split must have the column {missing[0]!r}, but split {split!r} has {have}")
    rows = pd.DataFrame({role: table.rows[column] for role, column in columns.items()}).rename_axis(split)
    for role, column in columns.items():
        empty = rows[role].isna().to_numpy()
        if empty.any():
            _refuse_row(int(empty.argmax()), split, column, role, "is missing")
        if role in TEXT_ROLES:
            _check_texts(rows[role], split, column, role)
    if "messages" in columns:
        place = f"(counted from 1) of split {split!r}"
        turns = [
            read_turns(value, place=f"{columns['messages']!r} in row {row} {place}", answered=answered)
            for row, value in enumerate(rows["messages"], start=1)
        ]
        rows["messages"] = pd.Series(turns, index=rows.index, dtype=object)
    if "label" in columns:
        column = columns["label"]
        rows["label"] = _class_names(rows["label"], table.names.get(column), split, column)
    return rows


def _refuse_row(row: int, split: str, column: str, role: str, what: str) -> None:
    raise DataError(
        f"every row must have a {role.replace('_', ' ')}, but {column!r} {what} in row {row + 1} (counted from 1) of "
        f"split {split!r}; drop the row or fill it in"
    )


def _check_texts(texts: "pd.Series[Any]", split: str, column: str, role: str) -> None:
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(
                f"columns.{role} must hold texts, but {column!r} holds {text!r} in row {row + 1} (counted from 1) of "
                f"split {split!r}; name another column"
            )
        if not text.strip():
            _refuse_row(row, split, column, role, "is empty")


def _class_names(values: "pd.Series[Any]", names: tuple[str, ...] | None, split: str, column: str) -> list[str]:
    result = []
    for row, value in enumerate(values):
        if names is not None:
            if not 0 <= int(value) < len(names):
                raise DataError(
                    f"0 <= {column} < {len(names)} must hold, but row {row + 1} (counted from 1) of split {split!r} "
                    f"has {value}: that split is not labelled; name another, or make one: splits.{split}: 0.15"
                )
            result.append(names[int(value)])
        elif isinstance(value, float):
            if not math.isfinite(value) or value != int(value):
                raise DataError(
                    f"labels must be classes, but {column!r} holds {value} in row {row + 1} (counted from 1) of split "
                    f"{split!r}: these are continuous values; round them into classes, or name another columns.label"
                )
            result.append(str(int(value)))
        elif isinstance(value, str) and not value.strip():
            _refuse_row(row, split, column, "label", "is empty")
        elif isinstance(value, list | tuple | dict) or getattr(value, "shape", ()) != ():
            raise DataError(
                f"each row must have one label, but {column!r} holds {value!r} in row {row + 1} (counted from 1) of "
                f"split {split!r}; text-classification takes one class for each text"
            )
        else:
            result.append(str(value))
    return result
