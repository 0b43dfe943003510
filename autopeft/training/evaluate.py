"""Predictions and scores of a split."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from autopeft.spec.training import Training
from autopeft.tasks.base import Evaluation, Task
from autopeft.tasks.batches import Inputs, batches_by_length, collate
from autopeft.tasks.examples import Examples
from autopeft.tasks.step import autocast, evaluation_step
from autopeft.training.measure import Peak, model_tensors, peak_memory


def evaluate(
    model: torch.nn.Module,
    examples: Examples,
    task: Task,
    training: Training,
    *,
    max_length: int,
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
        for indices, n_tokens in batches_by_length(examples, training.evaluation_batch_size, max_length):
            if should_stop():
                return None
            inputs = collate(examples, indices, n_tokens, device)
            with _measured(peak if not order else None, model, inputs, device):
                parts.append(evaluation_step(model, inputs, task).cpu().double().numpy())
            order.append(indices)
    shuffled = np.concatenate(parts)
    rows = np.empty_like(shuffled)
    rows[np.concatenate(order)] = shuffled
    n_wrong = np.count_nonzero(~np.isfinite(rows).all(axis=1))
    if n_wrong:
        raise FloatingPointError(f"{n_wrong} of {len(examples)} outputs are not finite")
    return task.evaluation(rows, examples.targets)


@contextmanager
def _measured(peak: Peak | None, model: torch.nn.Module, inputs: Inputs, device: torch.device) -> Iterator[None]:
    if peak is None:
        yield
        return
    with peak_memory([*model_tensors(model), *inputs.tensors], device) as found:
        yield
    peak.n_bytes = found.n_bytes
