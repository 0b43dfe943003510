"""Measured peak memory of a training or evaluation step, to lay beside the prediction."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.autograd.profiler import profile

from autopeft.models.technique import DISPLACED

# Kineto announces every start on stderr otherwise; it reads this when it is first used.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")


@dataclass(kw_only=True)
class Peak:
    """What `peak_memory` found.

    Attributes:
        n_bytes: Highest sum of live tensor bytes, or None before the block ended.
    """

    n_bytes: int | None = None


def model_tensors(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Yield every tensor that a model keeps, with what is attached to it."""
    yield from model.parameters()
    yield from model.buffers()
    yield from getattr(model, DISPLACED, ())
    for module in model.modules():
        # bitsandbytes keeps the scales of its packed weights outside of parameters and buffers.
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        for owner in (state, getattr(state, "state2", None)):  # double quantisation keeps scales of the scales
            if owner is not None:
                yield from (value for value in vars(owner).values() if isinstance(value, torch.Tensor))


def live_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes of the storages behind tensors, each counted once."""
    sizes: dict[int, int] = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


@contextmanager
def peak_memory(resident: Iterable[torch.Tensor], device: torch.device) -> Iterator[Peak]:
    """Measure the peak inside the block: what is resident at its start plus all that is allocated on top.

    On a CPU every allocation is followed by torch's profiler; on CUDA the allocator's own statistics
    are read. Both count tensors and workspaces that go through torch's allocators.

    Args:
        resident: Every tensor alive at the start: base, adapter, optimizer, batch.
        device: Where the block computes.

    Omits: memory that libraries take past torch's allocators (oneDNN scratch pads, cuBLAS handles).
    """
    peak = Peak()
    start_bytes = live_bytes(resident)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        allocated = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        torch.cuda.synchronize(device)
        # Other tensors of the process (a base at another quantization) are in both figures and cancel out.
        peak.n_bytes = start_bytes + torch.cuda.max_memory_allocated(device) - allocated
        return
    # Not `torch.profiler.profile`: that one refers to itself, so that its events, megabytes for each step, stay until
    # Python looks for such circles, which with many objects it does rarely.
    with profile(profile_memory=True, use_kineto=True) as profiler:
        yield peak
    events = profiler.kineto_results.events() if profiler.kineto_results is not None else []
    deltas = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    live = highest = start_bytes
    for _, delta in sorted(deltas, key=lambda item: item[0]):
        live += delta
        highest = max(highest, live)
    peak.n_bytes = highest
