"""How long a training step and a forward pass take on the device at hand."""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch

from autopeft.estimation.batch import batch_for
from autopeft.models.attach import Attached, attach
from autopeft.models.base import Base
from autopeft.spec.design import Design
from autopeft.spec.task import TASKS
from autopeft.spec.training import Training
from autopeft.tasks.base import Task, find_task
from autopeft.training.batches import Inputs
from autopeft.training.evaluate import autocast
from autopeft.training.loop import own_generators
from autopeft.training.optimizer import make_optimizer

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
    """Make a training step on each batch, as `autopeft.training.loop` does.

    Omits: clipping of gradients, the learning rate's schedule, and what techniques do after a step (AdaLoRA takes
        ranks away).
    """
    for inputs in batches:
        with autocast(training, attached.base.device):
            loss = task.loss(attached.model(**inputs.forward), inputs.labels)
        if (penalty := attached.penalty()) is not None:
            loss = loss + penalty
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


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
    task = find_task(next(name for name, facts in TASKS.items() if bool(facts.classes) == bool(base.head.labels)))
    started = time.perf_counter()
    with own_generators(str(base.device)):
        inputs = random_inputs(base, batch_size=training.batch_size, n_tokens=n_tokens)
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


def random_inputs(base: Base, *, batch_size: int, n_tokens: int) -> Inputs:
    """Return a batch without padding, of random tokens, pixels or sound, and random answers; on the base's device."""
    forward, labels = batch_for(base, batch_size=batch_size, n_tokens=n_tokens, device=base.device)
    for name, tensor in forward.items():
        if tensor.is_floating_point():
            tensor.normal_()
        elif name.endswith("input_ids"):
            tensor.random_(base.summary.vocabulary_size)
        else:
            tensor.fill_(name == "attention_mask")  # and all tokens are of the first segment
    labels.random_(len(base.head.labels) or base.summary.vocabulary_size)
    return Inputs(forward=forward, labels=labels)


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
