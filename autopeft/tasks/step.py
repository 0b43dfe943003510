"""The one training step and the one evaluation step: what is trained, what is timed and what is predicted.

The training loop, the timing of devices and the dry run without data call the same functions. They differ in what an
update of the parameters is, and in who watches.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch

from autopeft.models.attach import Attached
from autopeft.spec.training import Training
from autopeft.tasks.base import Task
from autopeft.tasks.batches import Inputs

Phase = Literal["forward", "backward", "optimizer"]
Watcher = Callable[[Phase], object]
"""Hears of a step's phases, each before it begins."""


def autocast(training: Training, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context that a forward pass runs in."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if training.precision == "bf16" else nullcontext()


def training_loss(model: torch.nn.Module, inputs: Inputs, task: Task) -> torch.Tensor:
    """Return the task's loss on a batch, a scalar; the context is the caller's.

    Args:
        model: In training mode.
        inputs: The batch.
        task: Gives the loss.
    """
    return task.loss(model(**inputs.forward), inputs.labels)


def training_step(
    attached: Attached,
    loss_of_batch: Callable[[], torch.Tensor],
    *,
    forward: AbstractContextManager[Any],
    update: Callable[[], None],
    accept: Callable[[torch.Tensor], bool] = lambda _: True,
    watch: Watcher = lambda _: None,
) -> None:
    """Compute the loss and its gradient on a batch, and update what trains.

    Args:
        attached: A design on its base, in training mode.
        loss_of_batch: Computes `training_loss`.
        forward: The context that this runs in.
        update: Uses the gradients, and drops them.
        accept: Asked with the loss, without a gradient; where it says no, the step ends there.
        watch: Hears of the phases.
    """
    watch("forward")
    with forward:
        loss = loss_of_batch()
    if not accept(loss.detach()):  # of the task alone: designs with a penalty and without are compared by it
        return
    penalty = attached.penalty()
    if penalty is not None:
        loss = loss + penalty
    watch("backward")
    loss.backward()  # type: ignore[no-untyped-call]
    watch("optimizer")
    update()


def evaluation_step(model: torch.nn.Module, inputs: Inputs, task: Task) -> torch.Tensor:
    """Return what an evaluation keeps of each example of a batch, [batch, column]; the context is the caller's.

    Args:
        model: In evaluation mode.
        inputs: The batch.
        task: Says what is kept.
    """
    # No name for the outputs: they would live on through the next batch's forward pass.
    return task.rows(model(**inputs.forward), inputs.labels)
