"""Reading data sets: files, folders, the hub and objects in; tables by split out, their values as they are."""

import importlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from autopeft.errors import DataError
from autopeft.spec.messages import echo, first_line, listed
from autopeft.tasks.arrow import read_parquet, to_frame
from autopeft.tasks.delimited import read_delimited
from autopeft.tasks.folder import Shard, find_files
from autopeft.tasks.json_file import read_json
from autopeft.tasks.table import Table, join
from autopeft.tasks.text_file import ENDINGS, EXTENSIONS, extension_of

SAVED = ("state.json", "dataset_info.json")
"""What `Dataset.save_to_disk` writes beside the data."""


def read(data: Any) -> dict[str, Table]:
    """Read a data set into its splits; data without splits is one split called `all`.

    What a csv or tsv file holds stays text, so that `007`, `1.10` and `NA` are what they are; an empty field is an
    empty text.

    Args:
        data: A path (csv, tsv, json, jsonl, parquet, a folder of such files or shards named by split, a clone of a
            data set, a saved data set), a hub id (`owner/name`, or `owner/name:configuration`), a `Dataset`, a
            `DatasetDict`, a DataFrame, or a mapping of split names to any of these.

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
        columns = pd.Index([str(column) for column in table.rows.columns])
        twice = columns[columns.duplicated()]
        if len(twice):
            raise DataError(
                f"columns must have different names, but split {name!r} has {echo(twice[0])} twice; rename one"
            )
    if not splits:
        raise DataError(f"data must have at least one split, but got {echo(data)}")
    return splits


def _table(part: Any) -> Table:
    if isinstance(part, str | Path):
        path = Path(part).expanduser()
        if not path.is_file():
            raise DataError(f"data must be an existing file, but got {echo(str(part))}; check the path")
        splits = _read_file(path)
        if len(splits) > 1:
            raise DataError(
                f"each split must be one table, but {str(path)!r} holds {listed(splits)}; give its path as the data"
            )
        return next(iter(splits.values()))
    if isinstance(part, pd.DataFrame):
        return Table(rows=part)
    if hasattr(part, "features") and hasattr(part, "with_format") and hasattr(part, "num_rows"):
        names = {
            column: tuple(f.names)
            for column, f in part.features.items()
            if hasattr(f, "names") and hasattr(f, "str2int")
        }
        return Table(rows=to_frame(part.with_format("arrow")[:]), names=names)
    way = "; give its to_pandas()" if hasattr(part, "to_pandas") else ""
    way = "; give pandas.DataFrame of all columns or rows" if isinstance(part, list) else way
    raise DataError(
        f"data must be a path, a hub id, a Dataset, a DatasetDict or a DataFrame, but got {type(part).__name__}{way}"
    )


def _read_path(data: str | Path) -> dict[str, Table]:
    text = str(data)
    path = Path(data).expanduser()
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except (OSError, ValueError):  # what is no path at all, such as the rows themselves
        raise DataError(f"data must be a path or a hub id, but got {echo(text)}; check the path") from None
    if is_file:
        return _read_file(path)
    if is_folder:
        return _read_folder(path)
    if extension_of(path) or text.startswith(("/", ".", "~")) or text.count("/") > 1 or "\n" in text:
        raise DataError(f"data must be an existing file or folder, but {echo(text)} is not there; check the path")
    return _read_hub(text)


def _read_file(path: Path, *, alone: bool = True) -> dict[str, Table]:
    extension = extension_of(path)
    if not extension:
        raise DataError(f"data must end with one of {ENDINGS}, but got {echo(str(path))}; convert it, or rename it")
    try:
        splits = _parse(path, extension)
    except (ValueError, OSError, KeyError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        reason = first_line(error)
        raise DataError(f"data {str(path)!r} cannot be read as {extension[1:]}: {reason}; check the file") from None
    shard = Shard.of(path)
    if alone and shard and shard.total > 1:
        note = (
            f"{path.name} is shard {shard.number + 1} of {shard.total} of {shard.split!r}: the others are not read; "
            "give their folder to read all"
        )
        splits = {name: replace(table, notes=(*table.notes, note)) for name, table in splits.items()}
    return splits


def _parse(path: Path, extension: str) -> dict[str, Table]:
    match extension:
        case ".csv":
            return {"all": read_delimited(path, ",")}
        case ".tsv":
            return {"all": read_delimited(path, "\t")}
        case ".parquet":
            return {"all": read_parquet(path)}
        case _:
            return read_json(path)


def _read_folder(path: Path) -> dict[str, Table]:
    if (path / "dataset_dict.json").is_file() or all((path / name).is_file() for name in SAVED):
        return _read_saved(path)
    result: dict[str, Table] = {}
    for name, files in find_files(path).items():
        splits = [_read_file(file, alone=False) for file in files]
        if len(splits) == 1 and len(splits[0]) > 1:
            result |= splits[0]
            continue
        tables = [table for part in splits for table in part.values()]
        result[name] = join(tables, [file.name for file in files])
    return result


def _read_saved(path: Path) -> dict[str, Table]:
    try:
        loaded = importlib.import_module("datasets").load_from_disk(str(path))
    except Exception as error:  # files may be missing or damaged in many ways
        raise DataError(
            f"data {str(path)!r} must be a data set that save_to_disk wrote, but cannot be loaded "
            f"({first_line(error)}); save it again"
        ) from None
    return {str(k): _table(v) for k, v in loaded.items()} if isinstance(loaded, Mapping) else {"all": _table(loaded)}


def _read_hub(name: str) -> dict[str, Table]:
    datasets = importlib.import_module("datasets")
    identifier, _, configuration = name.partition(":")
    try:
        loaded = datasets.load_dataset(identifier, configuration or None)
    except Exception as error:  # the library raises a dozen kinds, all of which mean the same here
        reason = first_line(error)
        raise DataError(
            f"data {echo(name)} is neither an existing path nor a data set that the hub gave ({reason}); check the "
            f"name, or give a path that ends with {', '.join(EXTENSIONS)}"
        ) from None
    return {str(split): _table(part) for split, part in loaded.items()}
