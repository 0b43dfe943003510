"""Predictions and scores of a split."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from autopeft.spec.training import Training
from autopeft.tasks.base import Evaluation, PreparedData, Task, TokenizedSplit
from autopeft.training.batches import Inputs, collate
from autopeft.training.measure import Peak, model_tensors, peak_memory
from autopeft.training.plan import padded_length


def autocast(training: Training, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context that a forward pass runs in."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if training.precision == "bf16" else nullcontext()


def batches_by_length(
    split: TokenizedSplit, batch_size: int, max_length: int
) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Yield indices and padded length of each batch, the longest first: little padding, and memory peaks at once."""
    order = np.argsort(-split.lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        yield indices, padded_length(int(split.lengths[indices].max()), max_length)


def n_padded_tokens(split: TokenizedSplit, batch_size: int, max_length: int) -> int:
    """Return the tokens that an evaluation runs through the model, padding included."""
    return sum(len(indices) * length for indices, length in batches_by_length(split, batch_size, max_length))


def evaluate(
    model: torch.nn.Module,
    split: TokenizedSplit,
    data: PreparedData,
    task: Task,
    training: Training,
    device: torch.device,
    should_stop: Callable[[], bool] = lambda: False,
    peak: Peak | None = None,
) -> Evaluation | None:
    """Return predictions and scores, or None where `should_stop` said so.

    `peak` gets the peak memory of the first batch, which is the longest.

    Raises:
        FloatingPointError: An output is not finite.
    """
    order: list[NDArray[np.int64]] = []
    parts: list[NDArray[np.float64]] = []
    model.eval()
    with torch.inference_mode(), autocast(training, device):
        for indices, n_tokens in batches_by_length(split, training.evaluation_batch_size, data.max_length):
            if should_stop():
                return None
            inputs = collate(split, indices, n_tokens, data, device)
            with _measured(peak if not order else None, model, inputs, device):
                # No name for the outputs: they would live on through the next batch's forward pass.
                parts.append(task.rows(model(**inputs.forward), inputs.labels).cpu().double().numpy())
            order.append(indices)
    shuffled = np.concatenate(parts)
    rows = np.empty_like(shuffled)
    rows[np.concatenate(order)] = shuffled
    n_wrong = np.count_nonzero(~np.isfinite(rows).all(axis=1))
    if n_wrong:
        raise FloatingPointError(f"{n_wrong} of {len(split)} outputs are not finite")
    return task.evaluation(rows, split.targets)


@contextmanager
def _measured(peak: Peak | None, model: torch.nn.Module, inputs: Inputs, device: torch.device) -> Iterator[None]:
    if peak is None:
        yield
        return
    with peak_memory([*model_tensors(model), *inputs.tensors], device) as found:
        yield
    peak.n_bytes = found.n_bytes
