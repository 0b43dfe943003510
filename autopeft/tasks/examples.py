"""Examples of a split as columns of arrays: what training, evaluation and prediction read."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autopeft.models.losses import IGNORED

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Ragged:
    """A column whose rows differ in length: one row after the other, without padding.

    Attributes:
        values: Of all rows, [total, ...].
        offsets: Row `i` is `values[offsets[i]:offsets[i + 1]]`; int64, [n_rows + 1].
        fill: What a batch is filled with, up to the length of its longest row.
    """

    values: Array
    offsets: NDArray[np.int64]
    fill: int = 0

    @classmethod
    def of(cls, rows: "list[list[int]] | list[Array]", *, fill: int = 0) -> "Ragged":
        """Return a column of token ids, int32.

        Args:
            rows: At least one; a row may be empty.
            fill: What a batch is filled with.
        """
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        values = np.concatenate([np.asarray(row, dtype=np.int32) for row in rows])
        return cls(values=values, offsets=offsets, fill=fill)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> Array:
        """Return the values of one row, [length, ...]."""
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Return the length of each row, [n_rows]."""
        return np.diff(self.offsets)

    def padded(self, indices: NDArray[np.int64], length: int) -> Array:
        """Return rows filled up on the right, [row, length, ...]: int64 where they are integers, else as they are.

        Args:
            indices: Of the rows.
            length: To fill up to; no row is longer.
        """
        lengths = self.lengths[indices]
        mask = np.arange(length) < lengths[:, None]
        # Flat position of every kept value, row by row: the array is filled without a Python loop.
        starts = self.offsets[indices] - (np.cumsum(lengths) - lengths)
        positions = np.repeat(starts, lengths) + np.arange(lengths.sum())
        dtype = np.int64 if np.issubdtype(self.values.dtype, np.integer) else self.values.dtype
        filled = np.full((len(indices), length, *self.values.shape[1:]), self.fill, dtype=dtype)
        filled[mask] = self.values[positions]
        return filled


Column = Array | Ragged
"""One value, or one array, for each example: an array [n_examples, ...], or rows of different lengths."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """Examples of one split, as columns.

    Attributes:
        inputs: By argument of the model's `forward`: ragged columns such as `input_ids`, of which the first decides
            the length of an example, or arrays such as `pixel_values`.
        labels: What is to be predicted: an array [n_examples, ...], such as the index of a class; or ragged, of tokens:
            the token itself where it is to be predicted from those before it, and `IGNORED` elsewhere.
    """

    inputs: Mapping[str, Column]
    labels: Column

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.labels)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Return the length of each example in tokens, [n_examples]; 1 where no input has a length."""
        ragged = (column for column in self.inputs.values() if isinstance(column, Ragged))
        first = next(ragged, None)
        return np.ones(len(self), dtype=np.int64) if first is None else first.lengths

    @property
    def targets(self) -> Array:
        """Return what predictions are compared with, [n_examples, ...]: the label, or the number of target tokens."""
        if not isinstance(self.labels, Ragged):
            return self.labels
        n_before = np.concatenate([[0], np.cumsum(self.labels.values != IGNORED)])
        return np.diff(n_before[self.labels.offsets])

    @property
    def arrays(self) -> Iterator[Array]:
        """Yield every array in a fixed order: inputs, offsets, labels."""
        columns = [*self.inputs.values(), self.labels]
        offsets = {id(column.offsets): column.offsets for column in columns if isinstance(column, Ragged)}
        *inputs, labels = (column.values if isinstance(column, Ragged) else column for column in columns)
        yield from (*inputs, *offsets.values(), labels)
