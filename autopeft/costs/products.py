"""What a bf16 product packs for itself on a CPU: the kernel is asked.

oneDNN copies its operands into blocks: for a CPU's matrix unit up to half of a core's cache of the weight, else pieces
of both operands for each thread; and where many channels are added up, it keeps sums in fp32. How much that is depends
on the shape, the threads and the CPU. So one product of each shape is computed for real, on zeros, while torch's
allocator is watched. One that would take long is asked for at a smaller shape: past about a thousand rows and columns
the blocks grow no more, and the tensors themselves take far more memory.
"""

from functools import partial
from math import prod

import torch

from autopeft.costs.kernel_scratch import Shape, asked, extended, most_threads

_MOST_MULTIPLICATIONS = 2**29
"""That a probe does: some milliseconds."""
_MOST_NUMBERS = 2**24
"""That its matrices have: 32 MB in bf16."""


def packed_bytes(left: torch.Tensor, right: torch.Tensor, n_threads: int) -> int:
    """Return what a product of two matrices takes besides them and its result: nothing from 4 bytes a number on."""
    if left.itemsize >= 4:
        return 0
    return packed_bytes_of(
        left.shape[0],
        left.shape[1],
        right.shape[1],
        left.dtype,
        n_threads,
        left_transposed=_is_transposed(left),
        right_transposed=_is_transposed(right),
    )


def packed_bytes_of(
    n_rows: int,
    n_inner: int,
    n_columns: int,
    dtype: torch.dtype,
    n_threads: int,
    *,
    left_transposed: bool = False,
    right_transposed: bool = False,
) -> int:
    """Return what a product [rows, inner] x [inner, columns] takes, each operand laid out by rows or transposed."""
    sizes = [n_rows, n_inner, n_columns]
    while prod(sizes) > _MOST_MULTIPLICATIONS or _n_numbers(*sizes) > _MOST_NUMBERS:
        largest = sizes.index(max(sizes))
        sizes[largest] = (sizes[largest] + 1) // 2
    given = (
        _matrix(sizes[0], sizes[1], dtype, transposed=left_transposed),
        _matrix(sizes[1], sizes[2], dtype, transposed=right_transposed),
    )
    return extended(partial(asked, torch.ops.aten.mm.default, given, 0, 0), n_threads, most_threads())


def _n_numbers(n_rows: int, n_inner: int, n_columns: int) -> int:
    return n_rows * n_inner + n_inner * n_columns + n_rows * n_columns


def _is_transposed(matrix: torch.Tensor) -> bool:
    return not matrix.is_contiguous() and matrix.stride(0) == 1


def _matrix(n_rows: int, n_columns: int, dtype: torch.dtype, *, transposed: bool) -> Shape:
    return Shape((n_rows, n_columns), (1, n_rows) if transposed else (n_columns, 1), dtype)
