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

from autopeft.errors import StudyError
from autopeft.models.attach import Attached, attach
from autopeft.models.base import Base, load_base
from autopeft.spec.block import block_kinds
from autopeft.spec.design import Design
from autopeft.spec.training import Kernel, Precision, Training
from autopeft.tasks.base import PreparedData, find_task
from autopeft.training.batches import collate
from autopeft.training.loop import own_generators
from autopeft.training.optimizer import make_optimizer
from autopeft.training.plan import Batch, Plan
from autopeft.training.timing import seconds_of, training_steps

N_BATCHES = 3
"""Batches timed in each round: of short, median and long inputs."""
MAX_ROUNDS = 5
BUDGET_SECONDS = 6.0
"""No further round starts once this much time was spent measuring, after two."""
HOPELESS = 1.3
"""A candidate whose first round took this many times the best one's is not timed again."""
PLAIN_MARGIN = 0.95
"""Another choice than fp32 with SDPA must take less than this share of its time: a tie goes to the plain one."""


def timed_design() -> Design:
    """Return the design whose training steps are timed: LoRA in all layers, where there is such a technique."""
    return Design.from_dict({"blocks": [{"lora": {"rank": 8, "roles": "all"}}] if "lora" in block_kinds() else []})


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A resolved training and what was measured for it.

    Attributes:
        step_seconds: Median time of a training step of `timed_design`, by `precision/kernel`.
    """

    training: Training
    step_seconds: dict[str, float]


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
    the machine meets all of them alike; medians decide.

    Raises:
        StudyError: The device is not there.
        ModelError: The model cannot be loaded, or its layers cannot be computed again where that was asked for.
    """
    device = _device(training.device)
    resolved = training.model_copy(update={"device": device})
    precisions = _open(training.precision, get_args(Precision))
    if device.startswith("cuda") and training.precision == "auto" and not torch.cuda.is_bf16_supported():
        precisions = ("fp32",)
    kernels = _open(training.kernel, get_args(Kernel))
    base = load_base(
        model,
        find_task(data.task).head(data.labels),
        device=device,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    if base.kernel != "sdpa" and training.kernel == "auto":
        kernels = ("eager",)  # the architecture has no other
    candidates = [
        resolved.model_copy(update={"precision": precision, "kernel": kernel})
        for precision, kernel in product(precisions, kernels)
    ]
    seconds = _measure(base, data, candidates)
    plain, best = seconds[0], min(seconds)
    chosen = candidates[0] if best > PLAIN_MARGIN * plain else candidates[seconds.index(best)]
    named = {f"{c.precision}/{c.kernel}": round(s, 6) for c, s in zip(candidates, seconds, strict=True)}
    return Choice(training=chosen, step_seconds=named)


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


def _measure(base: Base, data: PreparedData, candidates: list[Training]) -> list[float]:
    """Return each candidate's median seconds per training step, after a warm-up on one batch."""
    batches = _representative(Plan.of(data, candidates[0], seed=0))
    times: list[list[float]] = [[] for _ in candidates]
    checkpointing = candidates[0].checkpointing
    with own_generators(str(base.device)), attach(base, timed_design(), checkpointing=checkpointing) as attached:
        started = time.perf_counter()
        for candidate in candidates:
            _round(attached, data, candidate, batches[:1])
        # Where steps are slow (a large model, a busy machine), the middle batch alone has to do.
        if (time.perf_counter() - started) * N_BATCHES * 2 > BUDGET_SECONDS:
            batches = [batches[len(batches) // 2]]
        for n_rounds in range(MAX_ROUNDS):
            best = min((taken[0] for taken in times if taken), default=0.0)
            for candidate, taken in zip(candidates, times, strict=True):
                if n_rounds == 0 or taken[0] <= HOPELESS * best:
                    taken.append(_round(attached, data, candidate, batches))
            if n_rounds > 0 and time.perf_counter() - started > BUDGET_SECONDS:
                break
    return [statistics.median(taken) / len(batches) for taken in times]


def _representative(plan: Plan) -> list[Batch]:
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
        inputs = (collate(data.train, batch.indices, batch.n_tokens, data, device) for batch in batches)
        return seconds_of(lambda: training_steps(attached, optimizer, inputs, task, training), device)


@contextmanager
def _kernel(attached: Attached, training: Training) -> Iterator[None]:
    before = attached.model.config._attn_implementation
    attached.model.set_attn_implementation(training.kernel)
    try:
        yield
    finally:
        attached.model.set_attn_implementation(before)
