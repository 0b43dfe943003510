"""Arrow tables, which parquet files and the library `datasets` hold, as frames that lose nothing."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from autopeft.tasks.table import Source, Table
from autopeft.tasks.text_file import refuse_pointer


def read_parquet(path: Path) -> Table:
    """Read a file, with the classes that the library `datasets` declared in it.

    Raises:
        ValueError: It is no parquet file.
        OSError: It cannot be read.
    """
    refuse_pointer(path)
    with parquet.ParquetFile(path) as file:
        table = file.read()
    source = Source(name=path.name, n_rows=table.num_rows)
    return Table(rows=to_frame(table), names=_declared(table.schema), sources=(source,))


def to_frame(table: pa.Table) -> pd.DataFrame:
    """Return a frame; integers stay integers where others are missing, and a saved index becomes a column."""
    frame: pd.DataFrame = table.to_pandas(integer_object_nulls=True, ignore_metadata=True)
    return frame


def _declared(schema: pa.Schema) -> Mapping[str, tuple[str, ...]]:
    try:
        features: Any = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            column: tuple(map(str, feature["names"]))
            for column, feature in features.items()
            if isinstance(feature, Mapping) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
