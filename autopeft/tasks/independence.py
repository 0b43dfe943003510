"""Whether a row's answer depends on the rows beside it: a batch is filled up to its longest row, and must not show it.

Omits: what only long inputs show, such as windows; the tests try those on every architecture.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from autopeft.errors import ModelError
from autopeft.tasks.base import PreparedData
from autopeft.tasks.batches import collate

Write = Callable[[Sequence[NDArray[np.int32]]], tuple[torch.Tensor, ...]]
"""From prompts to logits, [prompt, vocabulary] for each token that is written."""
N_SHORT, N_MORE = 8, 24
"""Tokens of the row that is asked about at most, and of padding that a longer row beside it makes."""
TOLERANCE = {torch.float32: 1e-3}
"""How far apart answers may be by rounding alone, as a share of the largest output, by dtype."""
COARSE_TOLERANCE = 5e-2
"""The same of shorter dtypes."""


def check_rows(model: Any, data: PreparedData, device: torch.device, *, way_out: str = "take another model") -> None:
    """Refuse a model that answers a row of the training split otherwise beside a longer row than alone.

    Args:
        model: With its head; left in evaluation mode.
        data: Whose shortest row is asked about, with as much padding as a longer row would make.
        device: Of the model.
        way_out: What to do about it, for the message.

    Raises:
        ModelError: It does.
    """
    lengths = data.train.lengths
    asked = np.array([int(lengths.argmin()), int(lengths.argmax())])
    n_tokens = max(1, int(lengths[asked[0]]))
    n_padded = min(n_tokens + N_MORE, data.max_length)
    if n_padded == n_tokens:
        return  # rows of one length: no padding
    long_enough = lengths[asked[1]] > n_padded
    beside = asked[:1].repeat(2) if long_enough else asked
    model.eval()
    with torch.inference_mode():
        alone, padded = (
            model(**collate(data.train, rows, n, device).forward).logits
            for rows, n in ((asked[:1], n_tokens), (beside, n_padded))
        )
    per_token = alone.dim() == 3
    if per_token:
        alone, padded = alone[:, -n_tokens:], padded[:, :n_tokens]
    difference = _difference(alone[0], padded[0])
    if difference > 1:
        raise ModelError(
            f"a row's answer must not depend on the rows beside it, but {type(model).__name__} reads the padding that "
            f"a longer row makes (its answer moves by {difference * _tolerance(alone):.1%}); {way_out}"
        )


def takes_left_padding(prompts: Sequence[NDArray[np.int32]], write: Write) -> bool:
    """Return whether a language model goes on from a prompt beside a longer one as it does alone.

    Args:
        prompts: Of different lengths; the shortest and the longest of them are tried, cut to a few tokens.
        write: Returns the logits of the first tokens that the model writes after each of some prompts.
    """
    short = min(prompts, key=len)[-N_SHORT:]
    long = max(prompts, key=len)[-len(short) - N_MORE :]
    alone = write([short])
    try:
        beside = write([short, long])
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, IndexError, AssertionError):  # a state that has no place for padding
        return False
    return all(_difference(one[0], both[0]) <= 1 for one, both in zip(alone, beside, strict=False))  # one may end


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return how far two answers are apart, in tolerances."""
    scale = float(one.abs().max())
    return float((one - other).abs().max()) / (_tolerance(one) * scale) if scale else 0.0


def _tolerance(answer: torch.Tensor) -> float:
    coarse = answer.dtype not in TOLERANCE or torch.is_autocast_enabled(answer.device.type)
    return COARSE_TOLERANCE if coarse else TOLERANCE[answer.dtype]
