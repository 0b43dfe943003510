"""How long a training step and a forward pass take on the device at hand."""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from autopeft.models.attach import Attached, attach
from autopeft.models.base import Base
from autopeft.spec.design import Design
from autopeft.spec.training import Training
from autopeft.tasks.base import Task, task_of
from autopeft.tasks.batches import Inputs
from autopeft.tasks.inputs import fill_at_random
from autopeft.tasks.step import autocast, training_loss, training_step
from autopeft.training.loop import own_generators
from autopeft.training.optimizer import clip_gradients, make_optimizer

N_REPEATS = 3
"""Times that each thing is timed in a round, after it ran once; fewer where they take long."""
REPEAT_SECONDS = 0.5
"""No further repeat starts once this much time was spent on one thing in a round."""
MAX_ROUNDS = 7
BUDGET_SECONDS = 10.0
"""No further round starts once this much time was spent."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A design to be timed, and what of it.

    Attributes:
        trains: Whether training steps are timed.
        answers: Whether forward passes without gradients are.
    """

    design: Design
    trains: bool = True
    answers: bool = True


@dataclass(frozen=True, kw_only=True)
class Times:
    """What a design took: a median for each round, in seconds.

    Attributes:
        steps: Training steps; empty where none were asked for, or nothing trains.
        forwards: Forward passes of a batch; empty where none were asked for.
    """

    steps: list[float] = field(default_factory=list)
    forwards: list[float] = field(default_factory=list)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Return how long something takes on a device, with all that it started there."""
    _synchronize(device)
    started = time.perf_counter()
    work()
    _synchronize(device)
    return time.perf_counter() - started


def training_steps(
    attached: Attached, optimizer: torch.optim.Optimizer, batches: Iterable[Inputs], task: Task, training: Training
) -> None:
    """Make a training step on each batch.

    Omits: the learning rate's schedule, and what techniques do after a step (AdaLoRA takes ranks away).
    """

    def update() -> None:
        clip_gradients(attached, training.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for inputs in batches:
        loss = partial(training_loss, attached.model, inputs, task)
        training_step(attached, loss, forward=autocast(training, attached.base.device), update=update)


def time_in_turns(base: Base, runs: Sequence[Run], training: Training, *, n_tokens: int) -> list[Times]:
    """Time designs on one base, in turns, so that drift of the machine meets all of them alike.

    Batches are random, of `training.batch_size` examples without padding.

    Args:
        base: With weights, in the storage of all the designs.
        runs: What to time.
        training: With device and precision chosen.
        n_tokens: Of every example.

    Returns:
        For each of the runs, as many rounds as time allows; the n-th ones belong together.
    """
    times = [Times() for _ in runs]
    task = task_of(base.head)
    started = time.perf_counter()
    with own_generators(str(base.device)):
        batch = task.example_batch(base, batch_size=training.batch_size, n_tokens=n_tokens, device=base.device)
        inputs = fill_at_random(batch, base)
        for _ in range(MAX_ROUNDS):
            for run, taken in zip(runs, times, strict=True):
                with attach(base, run.design, checkpointing=training.checkpointing) as attached:
                    if run.trains and attached.n_trainable:
                        taken.steps.append(_step_seconds(attached, inputs, task, training))
                    if run.answers:
                        taken.forwards.append(_forward_seconds(attached, inputs, training))
            if time.perf_counter() - started > BUDGET_SECONDS:
                break
    return times


def _step_seconds(attached: Attached, inputs: Inputs, task: Task, training: Training) -> float:
    optimizer = make_optimizer(attached, {}, training)
    attached.model.train()
    return _median_seconds(lambda: training_steps(attached, optimizer, [inputs], task, training), attached.base.device)


def _forward_seconds(attached: Attached, inputs: Inputs, training: Training) -> float:
    attached.model.eval()
    with torch.inference_mode(), autocast(training, attached.base.device):
        return _median_seconds(lambda: attached.model(**inputs.forward), attached.base.device)


def _median_seconds(work: Callable[[], object], device: torch.device) -> float:
    work()  # the first time makes what later ones find
    taken: list[float] = []
    while len(taken) < N_REPEATS and sum(taken) < REPEAT_SECONDS:
        taken.append(seconds_of(work, device))
    return statistics.median(taken)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
