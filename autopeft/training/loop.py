"""The training loop: from one position of the plan to another, the same whatever came between."""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from autopeft.models.attach import Attached
from autopeft.models.technique import StepPosition
from autopeft.spec.cost import Measured
from autopeft.spec.training import Training
from autopeft.spec.trial import SegmentStatus
from autopeft.tasks.base import PreparedData, Task
from autopeft.tasks.batches import Inputs, collate
from autopeft.tasks.step import autocast, training_loss, training_step
from autopeft.training.checkpoint import Checkpoint
from autopeft.training.clock import Deadline, Pace
from autopeft.training.measure import model_tensors, peak_memory
from autopeft.training.optimizer import (
    clip_gradients,
    load_optimizer_state,
    make_optimizer,
    optimizer_state,
    set_learning_rate,
    state_tensors,
)
from autopeft.training.plan import Batch, BatchPlan, learning_rate_factor

MEASURED_STEP = 1
"""Index of the step whose peak memory is measured: the plan puts the largest batch of its first epoch there."""


@dataclass(kw_only=True, eq=False)
class SegmentProgress:
    """How far a segment has come; updated by the loop.

    Attributes:
        examples: Examples trained on since the start of the trial.
        losses: Mean loss of each step of the segment, without what techniques add to it.
        status: `DONE` once the segment's end is reached.
        error: Why training diverged, where it did.
    """

    examples: int = 0
    losses: list[float] = field(default_factory=list)
    measured: Measured = field(default_factory=Measured)
    status: SegmentStatus = SegmentStatus.DONE
    error: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trainer:
    """One design being trained: everything that a step needs.

    Attributes:
        plan: Of the trial's full training.
        evaluation_tokens: Tokens of the evaluation that follows; its time is kept free before the deadline.
    """

    attached: Attached
    optimizer: torch.optim.Optimizer
    plan: BatchPlan
    data: PreparedData
    task: Task
    training: Training
    device: torch.device
    pace: Pace
    evaluation_tokens: int

    @classmethod
    def of(
        cls,
        attached: Attached,
        plan: BatchPlan,
        learning_rates: Mapping[str, float],
        *,
        data: PreparedData,
        task: Task,
        training: Training,
        pace: Pace,
        evaluation_tokens: int = 0,
    ) -> "Trainer":
        """Return a trainer with a new optimizer."""
        return cls(
            attached=attached,
            optimizer=make_optimizer(attached, learning_rates, training),
            plan=plan,
            data=data,
            task=task,
            training=training,
            device=attached.base.device,
            pace=pace,
            evaluation_tokens=evaluation_tokens,
        )

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint.

        Raises:
            ArtifactError: It does not fit the design.
        """
        self.attached.load_state(checkpoint.adapter)
        if checkpoint.examples < checkpoint.full:
            load_optimizer_state(self.optimizer, self.attached, checkpoint.optimizer)

    def checkpoint(self, examples: int) -> Checkpoint:
        """Return where the trial stands; without the optimizer once nothing is left to train."""
        return Checkpoint(
            design=self.attached.design.key,
            seed=self.plan.seed,
            examples=examples,
            full=self.plan.full,
            adapter=self.attached.state(),
            optimizer=optimizer_state(self.optimizer, self.attached) if examples < self.plan.full else {},
        )

    def run(self, start: int, stop: int, deadline: Deadline, should_stop: Callable[[], bool]) -> SegmentProgress:
        """Train from example `start` until at least example `stop`.

        Ends early, at a step's end, where the deadline or `should_stop` says so (`INTERRUPTED`), or the
        loss or the gradient is not finite (`DIVERGED`).
        """
        progress = SegmentProgress(examples=start)
        self.attached.model.train()
        for batch in self.plan.batches(start, stop):
            expected = self.pace.expected_step_seconds(len(batch.indices) * batch.n_tokens)
            expected += self.pace.expected_evaluation_seconds(self.evaluation_tokens)
            if should_stop() or not deadline.leaves(expected):
                progress.status = SegmentStatus.INTERRUPTED
                break
            started = time.perf_counter()
            loss, reason, peak = self._measured_step(batch)
            seconds = time.perf_counter() - started
            n_tokens = len(batch.indices) * batch.n_tokens
            progress.losses.append(loss)
            progress.measured += Measured(peak_memory=peak, train_seconds=seconds, n_steps=1, n_tokens=n_tokens)
            if peak is None:  # a profiled step says nothing about the others' time
                self.pace.step_took(seconds, n_tokens)
            if reason:
                progress.status, progress.error = (
                    SegmentStatus.DIVERGED,
                    f"{reason} at step {batch.step} (example {batch.start})",
                )
                break
            progress.examples = batch.stop
        return progress

    def _measured_step(self, batch: Batch) -> tuple[float, str, int | None]:
        inputs = collate(self.data.train, batch.indices, batch.n_tokens, self.device)
        if batch.step != MEASURED_STEP:
            return *self._step(batch, inputs), None
        with peak_memory(self._resident(inputs), self.device) as peak:
            loss, reason = self._step(batch, inputs)
        return loss, reason, peak.n_bytes

    def _resident(self, inputs: Inputs) -> Iterator[torch.Tensor]:
        yield from model_tensors(self.attached.model)
        yield from inputs.tensors
        yield from self.attached.training_state().values()
        yield from state_tensors(self.optimizer)

    def _step(self, batch: Batch, inputs: Inputs) -> tuple[float, str]:
        """Make one optimizer step; return its loss, and why it was not made where it was not."""
        value, reason = math.nan, ""

        def accept(loss: torch.Tensor) -> bool:
            nonlocal value, reason
            value = float(loss)
            reason = "" if math.isfinite(value) else f"the training loss is {value}"
            return not reason

        def update() -> None:
            nonlocal reason
            norm = clip_gradients(self.attached, self.training.max_grad_norm)
            reason = "" if math.isfinite(norm) else f"the gradient's norm is {norm}"
            if not reason:
                self.optimizer.step()
                self.attached.after_step(StepPosition(step=batch.step, examples=batch.stop, full=self.plan.full))
            self.optimizer.zero_grad(set_to_none=True)

        # Dropout is a function of (trial seed, step), so that a resumed segment draws the same masks.
        torch.manual_seed(_mix(self.plan.seed, batch.step))
        set_learning_rate(self.optimizer, learning_rate_factor(batch, self.plan.full, self.training))
        forward = autocast(self.training, self.device)
        loss = partial(training_loss, self.attached.model, inputs, self.task)
        training_step(self.attached, loss, forward=forward, update=update, accept=accept)
        return value, reason


def own_generators(device: str) -> AbstractContextManager[None]:
    """Return a context in which torch's generators may be seeded: afterwards they are as they were."""
    # Devices are named, because torch warns where it has to guess among several.
    return torch.random.fork_rng(devices=[device] if device.startswith("cuda") else [])


def _mix(seed: int, step: int) -> int:
    return int.from_bytes(hashlib.sha256(np.array([seed, step], dtype=np.int64).tobytes()).digest()[:7], "little")
