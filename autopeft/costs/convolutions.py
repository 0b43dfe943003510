"""What a convolution takes for itself on a CPU: the kernel is asked.

oneDNN chooses among many kernels by shape, dtype, threads and CPU, and what they take follows no rule that shows from
outside: in bf16 next to nothing for most shapes, but 100 MB for each thread where three images or more are cut into
16 x 16 patches of 14 pixels. So one convolution of each shape is run for real, on zeros, while torch's allocator is
watched: some milliseconds, once in a process.

A probe reads and writes 32 MB at most; the scratch memory that it takes besides is what the training will take, nearly
none of which is ever touched. What it shows is that of this machine's CPU.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from autopeft.costs.kernel_scratch import asked, described, extended, most_threads
from autopeft.costs.tracker import Formula

_LARGEST_PROBE_BYTES = 2**25
"""What a probe reads and writes at most, or else one example: more examples are told from fewer."""


def convolution_formulas(n_threads: int) -> dict[Any, Formula]:
    """Return, by operator packet, the bytes that convolutions hold besides their arguments and results."""
    return {
        torch.ops.aten.convolution: partial(_scratch_bytes, torch.ops.aten.convolution.default, 1, n_threads),
        torch.ops.aten.convolution_backward: partial(
            _scratch_bytes, torch.ops.aten.convolution_backward.default, 2, n_threads
        ),
    }


def _scratch_bytes(
    operator: Callable[..., Any], n_batched: int, n_threads: int, *args: Any, out_val: Any, **_: Any
) -> int:
    """Return what a convolution takes.

    Args:
        operator: Of the forward or of the backward pass.
        n_batched: How many of its arguments, from the first on, have an example in each row.
        n_threads: That it is computed with.
        args: Positional arguments, with tensors that may be fake.
        out_val: Its results.
    """
    results = out_val if isinstance(out_val, tuple | list) else (out_val,)
    n_bytes = sum(tensor.nbytes for tensor in (*args[:n_batched], *results) if tensor is not None)
    n_examples = len(args[0])
    shapes = tuple(map(described, args))

    def ask(n_examples: int) -> int:
        return extended(partial(asked, operator, shapes, n_batched, n_examples), n_threads, most_threads())

    return extended(ask, n_examples, max(1, n_examples * _LARGEST_PROBE_BYTES // n_bytes))
