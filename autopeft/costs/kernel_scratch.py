"""What a kernel of this CPU takes for itself: it is run for real, on zeros, while the allocator is watched."""

import os
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch._C._autograd import _disable_profiler_legacy, _enable_profiler_legacy
from torch._C._profiler import ProfilerConfig, ProfilerState, _ExperimentalConfig


@dataclass(frozen=True, slots=True)
class Shape:
    """What a kernel is chosen by of a tensor."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    def zeros(self, n_examples: int | None = None) -> torch.Tensor:
        """Return such a tensor, or one of so many rows."""
        sizes = self.sizes if n_examples is None else (n_examples, *self.sizes[1:])
        return torch.empty_strided(sizes, self.strides, dtype=self.dtype).zero_()


def described(value: Any) -> Hashable:
    """Return an argument as it is remembered."""
    if isinstance(value, torch.Tensor):
        return Shape(tuple(value.shape), value.stride(), value.dtype)
    return tuple(value) if isinstance(value, list) else value


@lru_cache(maxsize=4096)
def asked(operator: Callable[..., Any], given: Sequence[Any], n_batched: int, n_examples: int, n_threads: int) -> int:
    """Return how far above its result's bytes an operator went, in a thread where no mode and no profiler is.

    Args:
        operator: What to run.
        given: Its positional arguments, tensors as their shapes.
        n_batched: How many of them, from the first on, have an example in each row.
        n_examples: So many of which there are to be.
        n_threads: That it is computed with.
    """

    def run() -> int:
        args = [
            value.zeros(n_examples if at < n_batched else None) if isinstance(value, Shape) else value
            for at, value in enumerate(given)
        ]
        before = torch.get_num_threads()
        torch.set_num_threads(n_threads)
        try:
            return _allocated_and_freed(lambda: operator(*args))
        finally:
            torch.set_num_threads(before)

    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(run).result()


def most_threads() -> int:
    """Return with how many threads at most a kernel is asked."""
    return max(2, os.cpu_count() or 1)


def extended(ask: Callable[[int], int], n: int, most: int) -> int:
    """Return the answer for a number, or for more than can be asked for, what lies on a line through two answers.

    Threads and, past the first few, examples each add the same.
    """
    if n <= most:
        return ask(n)
    if most == 1:
        return n * ask(1)
    half = most // 2
    return ask(most) + (n - most) * max(0, ask(most) - ask(half)) // (most - half)


def _allocated_and_freed(function: Callable[[], object]) -> int:
    """Return how far above its result's bytes a function goes.

    Torch's older profiler is the one that watches a thread alone: with the newer one, two at a time end the process.
    """
    _enable_profiler_legacy(ProfilerConfig(ProfilerState.CPU, False, True, False, False, False, _ExperimentalConfig()))
    try:
        result = function()
    finally:
        records = _disable_profiler_legacy()
    del result
    live = peak = 0
    for record in (each for of_thread in records for each in of_thread):
        live += record.cpu_memory_usage()  # 0 where it is no allocation
        peak = max(peak, live)
    return peak - live
