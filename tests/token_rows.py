"""Examples of tokens, made from rows and read as rows."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autopeft.tasks.examples import Examples, Ragged


def token_rows(examples: Examples, name: str = "input_ids") -> list[NDArray[np.int32]]:
    """Return one array of tokens for each example; of `labels` too, where they are of tokens."""
    column = examples.labels if name == "labels" else examples.inputs[name]
    assert isinstance(column, Ragged)
    return [column[row] for row in range(len(column))]


def make_examples(rows: Sequence[Sequence[int]], labels: Sequence[int], *, fill: int = 0) -> Examples:
    """Return examples of these tokens, each with a class."""
    tokens = Ragged.of([list(row) for row in rows], fill=fill)
    return Examples(inputs={"input_ids": tokens}, labels=np.array(labels, dtype=np.int64))
