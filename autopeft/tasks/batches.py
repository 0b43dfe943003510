"""From examples to the tensors of one forward pass: which rows go together, and how they are filled up."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from autopeft.tasks.examples import Array, Column, Examples, Ragged

PAD_MULTIPLE = 8
"""Tokens; batches are padded to a multiple of it, which matrix units like."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Inputs:
    """Tensors of one batch.

    Attributes:
        forward: Keyword arguments of the model, each [batch, ...].
        labels: What the task's loss compares with: [batch, ...], or [batch, token] with `IGNORED` at padding.
    """

    forward: dict[str, torch.Tensor]
    labels: torch.Tensor

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Return every tensor of the batch."""
        return [*self.forward.values(), self.labels]


def padded_length(longest: int, max_length: int) -> int:
    """Return the length that a batch is padded to: a multiple of `PAD_MULTIPLE`, never beyond what the model takes."""
    return max(longest, 1, min(-(-longest // PAD_MULTIPLE) * PAD_MULTIPLE, max_length))


def collate(examples: Examples, indices: NDArray[np.int64], n_tokens: int, device: torch.device) -> Inputs:
    """Fill examples up and put them on the device.

    Columns of the same lengths as the first ragged input are filled up to `n_tokens`; of other lengths, to the longest
    of the batch. An example without tokens is read as one token of padding: attention to nothing would be an answer of
    the batch.

    Args:
        examples: Of one split.
        indices: Of the examples.
        n_tokens: To fill up to.
        device: Where the tensors go.
    """
    main = next((column for column in examples.inputs.values() if isinstance(column, Ragged)), None)

    def rows_of(column: Column) -> Array:
        if not isinstance(column, Ragged):
            return column[indices]
        same = main is not None and (column.offsets is main.offsets or np.array_equal(column.offsets, main.offsets))
        return column.padded(indices, n_tokens if same else max(1, int(column.lengths[indices].max())))

    forward = {name: rows_of(column) for name, column in examples.inputs.items()}
    if main is not None:
        lengths = np.maximum(1, main.lengths[indices])
        forward["attention_mask"] = (np.arange(n_tokens) < lengths[:, None]).astype(np.int64)
    labels = rows_of(examples.labels)
    return Inputs(
        forward={name: torch.from_numpy(array).to(device) for name, array in forward.items()},
        labels=torch.from_numpy(labels).to(device),
    )


def batches_by_length(examples: Examples, batch_size: int, max_length: int) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Yield indices and padded length of each batch, the longest first: little padding, and memory peaks at once."""
    lengths = examples.lengths
    order = np.argsort(-lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        yield indices, padded_length(int(lengths[indices].max()), max_length)


def n_padded_tokens(examples: Examples, batch_size: int, max_length: int) -> int:
    """Return the tokens that an evaluation runs through the model, padding included."""
    return sum(len(indices) * length for indices, length in batches_by_length(examples, batch_size, max_length))
