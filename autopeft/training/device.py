"""Device, precision and attention kernel: chosen once for a study, by a short measurement on the device itself."""

import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path, PurePosixPath
from typing import get_args

import torch

from autopeft.errors import AutopeftError, ModelError, StudyError
from autopeft.models.attach import Attached, attach
from autopeft.models.base import Base, load_base
from autopeft.spec.block import block_kinds
from autopeft.spec.design import Design
from autopeft.spec.messages import first_line
from autopeft.spec.training import Kernel, Precision, Training
from autopeft.tasks.base import PreparedData, find_task
from autopeft.tasks.batches import collate
from autopeft.tasks.independence import check_rows
from autopeft.training.loop import own_generators
from autopeft.training.optimizer import make_optimizer
from autopeft.training.plan import Batch, BatchPlan
from autopeft.training.precision import HOPELESS, PLAIN_MARGIN, step_times
from autopeft.training.timing import seconds_of, training_steps

N_BATCHES = 3
"""Batches timed in each round: of short, median and long inputs."""
MAX_ROUNDS = 5
BUDGET_SECONDS = 4.5
"""No further round starts once this much time was spent measuring, after one."""
BEHIND = 1.3
"""A candidate whose first round took this many times the best one's is not timed again."""


def timed_design() -> Design:
    """Return the design whose training steps are timed: LoRA in all layers, where there is such a technique."""
    return Design.from_dict({"blocks": [{"lora": {"rank": 8, "roles": "all"}}] if "lora" in block_kinds() else []})


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A resolved training and what was measured for it.

    Attributes:
        step_seconds: Median time of a training step of `timed_design`, by `precision/kernel`; a candidate that was
            given up has none.
        notes: What a user should know of a precision that the study gives.
    """

    training: Training
    step_seconds: dict[str, float]
    notes: tuple[str, ...] = ()


def choose_training(
    model: str,
    training: Training,
    data: PreparedData,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Choice:
    """Resolve every `auto` in a training; the caller stores the answer for the whole study.

    Each open combination trains a small LoRA on a few batches of the plan, in turns, so that drift of
    the machine meets all of them alike; medians decide. A precision in which one small layer takes several times as
    long is given up before that, and a candidate after one step of that kind.

    Raises:
        StudyError: The device is not there, or cannot compute in what the study gives.
        ModelError: The model cannot be loaded, reads the padding of a batch, or its layers cannot be computed again
            where that was asked for.
    """
    device = _device(training.device)
    resolved = training.model_copy(update={"device": device})
    precisions, notes = _precisions(training.precision, device)
    kernels = _open(training.kernel, get_args(Kernel))
    if notes:
        kernels = kernels[:1]  # not worth the time
    base = load_base(
        model,
        find_task(data.task).head(data.labels),
        device=device,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    check_rows(base.model, data, base.device)
    if base.kernel != "sdpa" and training.kernel == "auto":
        kernels = ("eager",)  # the architecture has no other
    candidates = [
        resolved.model_copy(update={"precision": precision, "kernel": kernel})
        for precision, kernel in product(precisions, kernels)
    ]
    seconds = _measure(base, data, candidates)
    plain, best = next(iter(seconds)), min(seconds, key=lambda at: seconds[at])
    chosen = candidates[plain if seconds[best] > PLAIN_MARGIN * seconds[plain] else best]
    named = {f"{candidates[at].precision}/{candidates[at].kernel}": round(s, 6) for at, s in seconds.items()}
    return Choice(training=chosen, step_seconds=named, notes=notes)


def memory_bytes(device: str) -> int:
    """Return the memory of a device: of a GPU, or of this machine, a limit on this process's group included."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *group_limits()])


def group_limits(groups: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Return the limits on the memory of this process's control group, and of those that hold it.

    A container's limit stands at the root that it sees, and that of a Slurm job some groups below.

    Args:
        groups: Says which group of each hierarchy the process is in.
        mounted: Where the hierarchies are mounted.
    """
    found: list[int] = []
    for hierarchy, name, group in _memory_groups(groups, mounted):
        for holder in (group, *group.parents):
            with suppress(OSError, ValueError):  # no such file, also of a group that is not mounted; the word `max`
                found.append(int((hierarchy / holder / name).read_text()))
    return found


def _memory_groups(groups: Path, mounted: Path) -> Iterator[tuple[Path, str, PurePosixPath]]:
    """Yield for each hierarchy that limits memory its folder, the name of a limit in it, and this process's group."""
    unified, memory = (mounted, "memory.max"), (mounted / "memory", "memory.limit_in_bytes")
    paths = dict.fromkeys((unified, memory), PurePosixPath())
    with suppress(OSError):
        for line in groups.read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            group = PurePosixPath(path.lstrip("/"))
            if ".." in group.parts:  # outside of what is mounted here
                continue
            if "memory" in controllers.split(","):
                paths[memory] = group
            elif number == "0":
                paths[unified] = group
    for (hierarchy, name), group in paths.items():
        yield hierarchy, name, group


def available_bytes(device: str) -> int:
    """Return what of a device's memory nobody uses, as far as the system says."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    file = Path("/proc/meminfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    free = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return min([memory_bytes(device), *free])


def is_there(device: str) -> bool:
    """Return whether torch sees a device."""
    return not device.startswith("cuda") or torch.cuda.is_available()


def _device(wanted: str) -> str:
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not is_there(wanted):
        raise StudyError(
            f"training.device must be there, but torch sees no CUDA device for {wanted!r}; set it to auto or cpu"
        )
    try:
        torch.device(wanted)
    except RuntimeError:
        raise StudyError(f"training.device must be auto, cpu or cuda, but got {wanted!r}") from None
    return wanted


def _open(value: str, choices: tuple[str, ...]) -> tuple[str, ...]:
    # The plain choice (fp32, sdpa) comes first in each.
    return choices if value == "auto" else (value,)


def _precisions(given: str, device: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the precisions to measure, fp32 first, and a note on one that the study gives."""
    if given == "fp32" or (given == "auto" and device.startswith("cuda") and not torch.cuda.is_bf16_supported()):
        return ("fp32",), ()
    times = step_times(device)
    is_hopeless = times.bf16_ratio > HOPELESS
    if given == "auto":
        return (("fp32",) if is_hopeless else get_args(Precision)), ()
    note = f"training.precision is {given}, but this processor is {times.describe()}; leave out training.precision"
    return (given,), (note,) if is_hopeless else ()


def _measure(base: Base, data: PreparedData, candidates: list[Training]) -> dict[int, float]:
    """Return the median seconds per training step of each candidate that was not given up, by its index."""
    batches = _representative(BatchPlan.of(data, candidates[0], seed=0))
    checkpointing = candidates[0].checkpointing
    with own_generators(str(base.device)), attach(base, timed_design(), checkpointing=checkpointing) as attached:
        started = time.perf_counter()
        first = _first_steps(attached, data, candidates, batches[:1])
        # Where steps are slow (a large model, a busy machine), the middle batch alone has to do.
        if (time.perf_counter() - started) * N_BATCHES * 2 > BUDGET_SECONDS:
            batches = [batches[len(batches) // 2]]
        times: dict[int, list[float]] = {at: [] for at in first}
        for n_rounds in range(MAX_ROUNDS):
            if n_rounds and time.perf_counter() - started > BUDGET_SECONDS:
                break
            best = min((taken[0] for taken in times.values() if taken), default=0.0)
            for at, taken in times.items():
                if n_rounds == 0 or taken[0] <= BEHIND * best:
                    taken.append(_round(attached, data, candidates[at], batches))
    return {at: statistics.median(taken) / len(batches) for at, taken in times.items()}


def _first_steps(
    attached: Attached, data: PreparedData, candidates: list[Training], batches: list[Batch]
) -> dict[int, float]:
    """Return the seconds of each candidate's first step, by its index, without those that are given up for it.

    The plain candidate comes first, so that no other one runs before there is something to compare it with. One
    that the device has no kernel for is given up, too.

    Raises:
        StudyError: The device has no kernel for any of them.
    """
    taken: dict[int, float] = {}
    failure: RuntimeError | None = None
    for at, candidate in enumerate(candidates):
        try:
            taken[at] = _round(attached, data, candidate, batches)
        except RuntimeError as error:
            failure = failure or error
        except AutopeftError:
            raise
        except (ValueError, TypeError, IndexError, AttributeError, KeyError) as error:
            raise ModelError(
                f"a training step must run on the model with this data, but {attached.base.summary.architecture} "
                f"raises {type(error).__name__}: {first_line(error)}; take another model"
            ) from error
    if not taken and failure is not None:
        if isinstance(failure, torch.OutOfMemoryError) or candidates[0].precision == "fp32":
            raise failure  # no matter of kernels
        raise StudyError(
            f"a training step must be possible in training.precision {candidates[0].precision} with training.kernel "
            f"{candidates[0].kernel}, but none is on this device: {str(failure).splitlines()[0]}; leave both out"
        ) from failure
    at_most = HOPELESS * min(taken.values())
    return {at: seconds for at, seconds in taken.items() if at == 0 or seconds <= at_most}


def _representative(plan: BatchPlan) -> list[Batch]:
    """Return batches at the middle of equal parts of the first epoch, ordered by size: together they cost like it."""
    first_epoch = sorted(plan.batches(0, min(plan.full, len(plan.lengths))), key=lambda b: len(b.indices) * b.n_tokens)
    n = min(N_BATCHES, len(first_epoch))
    return [first_epoch[(2 * part + 1) * len(first_epoch) // (2 * n)] for part in range(n)]


def _round(attached: Attached, data: PreparedData, training: Training, batches: list[Batch]) -> float:
    """Return the seconds that one training step on each batch takes."""
    device, task = attached.base.device, find_task(data.task)
    optimizer = make_optimizer(attached, {}, training)
    with _kernel(attached, training):
        attached.model.train()
        inputs = (collate(data.train, batch.indices, batch.n_tokens, device) for batch in batches)
        return seconds_of(lambda: training_steps(attached, optimizer, inputs, task, training), device)


@contextmanager
def _kernel(attached: Attached, training: Training) -> Iterator[None]:
    before = attached.model.config._attn_implementation
    attached.model.set_attn_implementation(training.kernel)
    try:
        yield
    finally:
        attached.model.set_attn_implementation(before)
