"""From flat token arrays to the padded tensors of one forward pass."""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from autopeft.models.losses import IGNORED
from autopeft.tasks.base import TokenizedSplit


class Padding(Protocol):
    """What fills a batch up to its longest example; `PreparedData` says it."""

    @property
    def pad_token_id(self) -> int:
        """Return the token to fill with."""

    @property
    def padding_side(self) -> Literal["left", "right"]:
        """Return the side to fill on."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Inputs:
    """Tensors of one batch.

    Attributes:
        forward: Keyword arguments of the model; each [batch, token].
        labels: What the task's loss compares with; [batch], or [batch, token] with `IGNORED` at padding.
    """

    forward: dict[str, torch.Tensor]
    labels: torch.Tensor

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Return every tensor of the batch."""
        return [*self.forward.values(), self.labels]


def collate(
    split: TokenizedSplit, indices: NDArray[np.int64], n_tokens: int, data: Padding, device: torch.device
) -> Inputs:
    """Pad examples of a split to `n_tokens` and put them on the device.

    An example without tokens is read as one token of padding: attention to nothing would be an answer of the batch.
    """
    lengths = split.lengths[indices]
    columns = np.arange(n_tokens)
    if data.padding_side == "left":
        columns = columns - (n_tokens - lengths)[:, None]
        mask = columns >= 0
    else:
        mask = columns < lengths[:, None]
    # Flat position of every kept token, row by row: the arrays are filled without a Python loop.
    tokens = np.repeat(split.offsets[indices] - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
    seen = mask.copy()
    seen[lengths == 0, -1 if data.padding_side == "left" else 0] = True
    forward = {
        "input_ids": _fill(split.input_ids[tokens], mask, data.pad_token_id),
        "attention_mask": seen.astype(np.int64),
    }
    if split.token_type_ids is not None:
        forward["token_type_ids"] = _fill(split.token_type_ids[tokens], mask, 0)
    labels = _fill(split.labels[tokens], mask, IGNORED) if split.per_token else split.labels[indices]
    return Inputs(
        forward={name: torch.from_numpy(array).to(device) for name, array in forward.items()},
        labels=torch.from_numpy(labels).to(device),
    )


def _fill(values: NDArray[np.int32], mask: NDArray[np.bool_], padding: int) -> NDArray[np.int64]:
    filled = np.full(mask.shape, padding, dtype=np.int64)
    filled[mask] = values
    return filled
