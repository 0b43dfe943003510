"""What kernels allocate for themselves, and the FLOPs of those that torch has no formula for.

A dispatch mode sees the tensors that go into an operator and come out of it. This module knows what
happens in between: workspaces of the CPU's flash attention, the dequantized weight inside a 4-bit
product, the integers or fp32 copies inside an int8 product. What convolutions and bf16 products take is asked of the
kernels themselves, by `autopeft.costs.convolutions` and `autopeft.costs.products`; so is
whether this CPU has a matrix unit (AMX), for which attention packs, too.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from autopeft.costs.convolutions import convolution_formulas
from autopeft.costs.cuda_kernels import CUDA_QUANTIZED_SCRATCH, cuda_scratch
from autopeft.costs.kernel_scratch import Shape, asked
from autopeft.costs.products import packed_bytes, packed_bytes_of
from autopeft.costs.recurrent import lstm_backward_scratch_bytes, lstm_layer, lstm_scratch_bytes
from autopeft.costs.tracker import Formula

_aten = torch.ops.aten
_FLASH = _aten._scaled_dot_product_flash_attention_for_cpu
_FLASH_BACKWARD = _aten._scaled_dot_product_flash_attention_for_cpu_backward
_QUADRATIC = frozenset(
    {
        _aten.bmm,
        _aten.baddbmm,
        _FLASH,
        _FLASH_BACKWARD,
        *(packet for packet in flop_registry if "attention" in str(packet)),
    }
)
_ARITHMETIC = tuple(getattr(_aten, name + end) for name in ("add", "sub", "mul", "div") for end in ("", "_"))
_KEY_BLOCK = 512
"""Keys that the CPU's flash attention takes at a time."""
_PROBE = Shape((512, 512), (512, 1), torch.bfloat16)
"""A weight that a CPU with a matrix unit packs whole."""


@cache
def has_matrix_unit() -> bool:
    """Return whether this CPU multiplies bf16 in a matrix unit, for which it packs whole weights, and keys."""
    packed_bytes = asked(_aten.mm.default, (_PROBE, _PROBE), 0, 0, 1)
    return packed_bytes > prod(_PROBE.sizes)  # half of the weight: pieces are a quarter of it


def scratch_formulas(device: str, *, n_threads: int) -> dict[Any, Formula]:
    """Return, by operator packet, the bytes that a kernel holds besides its arguments and results.

    Args:
        device: `cpu` or `cuda`, whose kernels `autopeft.costs.cuda_kernels` knows.
        n_threads: Threads of the device's process; each has a workspace.
    """

    def flash(query: torch.Tensor, key: torch.Tensor, *_: Any, **__: Any) -> int:
        return _flash_bytes(query, key, n_threads)

    def flash_backward(grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, *_: Any, **__: Any) -> int:
        return _flash_backward_bytes(grad, query, key, n_threads)

    quantized: Mapping[str, Formula] = CUDA_QUANTIZED_SCRATCH
    formulas = cuda_scratch()
    if device == "cpu":
        quantized = {
            **_QUANTIZED_SCRATCH,
            "gemm_4bit": lambda hidden, _packed, shape, _absmax, _size, _type, _bias=None, absmax_8bit=None, *_, **__: (
                _dequantized_bytes(hidden, shape, n_threads) + _scale_bytes(absmax_8bit)
            ),
        }
        formulas = {
            _FLASH: flash,
            _FLASH_BACKWARD: flash_backward,
            _aten.mm: lambda left, right, **_: packed_bytes(left, right, n_threads),
            _aten.addmm: lambda _bias, left, right, **_: packed_bytes(left, right, n_threads),
            _aten.mkldnn_rnn_layer: lstm_scratch_bytes,
            _aten.mkldnn_rnn_layer_backward: lstm_backward_scratch_bytes,
            **convolution_formulas(n_threads),
            **dict.fromkeys(_ARITHMETIC, _promoted_bytes),
        }
    for name, formula in quantized.items():
        # bitsandbytes registers its operators when it is imported; before that no layer can use them.
        if hasattr(torch.ops.bitsandbytes, name):
            formulas[getattr(torch.ops.bitsandbytes, name)] = formula
    return formulas


def flop_formulas() -> Mapping[Any, Formula]:
    """Return, by operator packet, FLOPs: by torch, and of CPU flash attention, experts, LSTMs, quantized products."""
    formulas: dict[Any, Formula] = {
        **flop_registry,
        **{product: _on_shapes(flop_registry[product]) for product in (_aten.mm, _aten.addmm, _aten.bmm)},
        _FLASH: _flash_flops,
        _FLASH_BACKWARD: _flash_backward_flops,
        _aten._grouped_mm: _grouped_flops,
        _aten.mkldnn_rnn_layer: lambda read, *weights, **_: _recurrent_flops(read, weights[:2]),
        _aten.mkldnn_rnn_layer_backward: lambda read, *weights, **_: 2 * _recurrent_flops(read, weights[:2]),
        _aten.lstm: lambda read, _states, weights, *_, **__: _recurrent_flops(read, weights),
    }
    for name, formula in _QUANTIZED_FLOPS.items():
        if hasattr(torch.ops.bitsandbytes, name):
            formulas[getattr(torch.ops.bitsandbytes, name)] = formula
    return formulas


def replacements() -> Mapping[Any, Callable[..., Any]]:
    """Return, by operator packet, stand-ins for operators whose result's shape depends on data, LSTMs and experts.

    Omits: the columns with outliers that int8 products multiply in full precision.
    """
    everywhere: dict[Any, Callable[..., Any]] = {
        _aten.mkldnn_rnn_layer: lstm_layer,
        _aten._grouped_mm: _grouped_product,
    }
    if not hasattr(torch.ops.bitsandbytes, "int8_vectorwise_quant"):
        return everywhere
    return everywhere | {
        torch.ops.bitsandbytes.int8_vectorwise_quant: _int8_quantize,
        torch.ops.bitsandbytes.int8_mixed_scaled_mm: _int8_product,
    }


def is_attention(packet: Any) -> bool:
    """Return whether an operator's FLOPs grow with the square of the length: attention, or its products."""
    return packet in _QUADRATIC


def _query_block(n_queries: int) -> int:
    return min(n_queries, 256 if n_queries >= 768 else 64 if n_queries >= 192 else 32)


def _flash_bytes(query: torch.Tensor, key: torch.Tensor, n_threads: int) -> int:
    """Return the workspace of the CPU's flash attention in the forward pass.

    Each thread has a block of scores, its sums and maxima, and a block of the output, in fp32. Reduced
    precision adds the block of scores in that dtype, and on CPUs with a matrix unit a block of keys, and all keys and
    values packed for it.

    Source: `cpu_flash_attention` in aten/src/ATen/native/cpu/FlashAttentionKernel.cpp; equal to
        the profiler's figure to the byte, lengths 64 to 2,048.
    """
    block, key_block = _query_block(query.shape[-2]), min(_KEY_BLOCK, key.shape[-2])
    scores = block * key_block
    n_bytes = 4 * n_threads * (scores + 2 * block + block * query.shape[-1])
    if query.itemsize < 4:
        n_bytes += query.itemsize * n_threads * scores
        if has_matrix_unit():
            n_bytes += query.itemsize * n_threads * key_block * query.shape[-1] + 2 * key.numel() * key.itemsize
    return n_bytes


def _flash_backward_bytes(grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, n_threads: int) -> int:
    """Return the workspace of the CPU's flash attention in the backward pass.

    Source: `cpu_flash_attention_backward`, as above. A gradient that is not laid out
        [batch, token, head, channel] is copied first.
    """
    block = _query_block(query.shape[-2])
    scores = block * min(_KEY_BLOCK, key.shape[-2])
    n_bytes = 4 * n_threads * (2 * scores + block)
    if query.itemsize < 4:
        n_bytes += 2 * query.itemsize * n_threads * scores
    if not grad.transpose(1, 2).is_contiguous():
        n_bytes += grad.numel() * grad.itemsize
    return n_bytes


def _promoted_bytes(left: Any, right: Any, *_: Any, out_val: torch.Tensor, **__: Any) -> int:
    """Return the size of copies that arithmetic makes of a bf16 operand where the other one is fp32.

    Where the result takes the place of the smaller operand, it is made in fp32 first, too.

    Source: `TensorIteratorBase::compute_types` in aten/src/ATen/TensorIterator.cpp; CUDA converts as it reads.
    """
    if not isinstance(left, torch.Tensor) or not isinstance(right, torch.Tensor):
        return 0
    if left.dtype == right.dtype or not left.dim() or not right.dim():
        return 0
    dtype = torch.promote_types(left.dtype, right.dtype)
    copied = [tensor for tensor in (left, right, out_val) if tensor.dtype != dtype]
    return sum(tensor.numel() for tensor in copied) * dtype.itemsize


def _on_shapes(formula: Any) -> Formula:
    """Return torch's formula of an operator on tensors alone; its own way to their shapes takes ten times as long."""
    on_shapes: Callable[..., int] = formula.__wrapped__

    def count(*tensors: Any, out_val: torch.Tensor, **_: Any) -> int:
        return on_shapes(*(getattr(tensor, "shape", tensor) for tensor in tensors), out_shape=out_val.shape)

    return count


def _flash_flops(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))  # type: ignore[no-untyped-call]


def _flash_backward_flops(
    grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
) -> int:
    return int(sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape))  # type: ignore[no-untyped-call]


def _grouped_flops(left: torch.Tensor, right: torch.Tensor, *_: Any, **__: Any) -> int:
    """Return the FLOPs of products of rows, or of columns, each with the weight of its expert alone."""
    if left.dim() > right.dim():
        return 2 * right.numel() * left.shape[-2]
    return 2 * left.numel() * right.shape[-1]


def _recurrent_flops(read: torch.Tensor, weights: Sequence[torch.Tensor]) -> int:
    """Return the FLOPs of a CPU's LSTM: the products of what it reads, [positions, batch, width], with its matrices."""
    return 2 * read.shape[:-1].numel() * sum(weight.numel() for weight in weights if weight.dim() == 2)


def _dequantized_bytes(hidden: torch.Tensor, shape: list[int], n_threads: int) -> int:
    """Return the size of a 4-bit weight, dequantized to the dtype of its input, and packed if that is bf16."""
    n_bytes = prod(shape) * hidden.itemsize
    if hidden.itemsize >= 4:
        return n_bytes
    n_rows = hidden.numel() // hidden.shape[-1]
    n_columns, n_inner = shape
    return n_bytes + packed_bytes_of(n_rows, n_inner, n_columns, hidden.dtype, n_threads, right_transposed=True)


def _scale_bytes(codes: torch.Tensor | None) -> int:
    """Return the size of a 4-bit weight's scales, dequantized to fp32 where they are quantized too.

    Source: `_gemm_4bit_default_impl` in bitsandbytes/backends/default/ops.py (0.50). The sum with their mean
        makes a second copy, gone before the weight is dequantized, which takes more.
    """
    return 0 if codes is None else 4 * codes.numel()


def _int8_quantize_bytes(hidden: torch.Tensor, *_: Any, **__: Any) -> int:
    """Return what quantizing activations by row takes: a mask, and two products in fp32.

    Source: `int8_vectorwise_quant` in bitsandbytes/backends/default/ops.py (0.50).
    """
    return 8 * hidden.numel()


def _int8_product_bytes(
    hidden: torch.Tensor, quantized: torch.Tensor, weight: torch.Tensor, *_: Any, out_val: Any, **__: Any
) -> int:
    """Return what an int8 product and its scaling take: the integer sums, and three fp32 tensors of their size.

    A CPU without AVX512 multiplies copies of both operands in fp32 first, of which autocast makes copies in bf16.

    Source: `int8_scaled_mm` and `int8_mm_dequant`, as above: the scales' outer product, the sums as
        fp32, and the result, which is counted as such; `_int8_linear_matmul_impl` for the copies.
    """
    n: int = out_val[0].numel()
    is_cast = hidden.itemsize < 4
    copied = (4 + hidden.itemsize * is_cast) * (quantized.numel() + weight.numel())
    product = 0 if _multiplies_int8() else copied + n * hidden.itemsize
    return max(16 * n, product) - n * hidden.itemsize


@cache
def _multiplies_int8() -> bool:
    """Return whether bitsandbytes multiplies int8 on this CPU, or copies of both operands in fp32: it is run once."""
    given = Shape((64, 64), (64, 1), torch.int8)
    copied_bytes = 2 * 4 * prod(given.sizes)
    return asked(torch.ops.bitsandbytes.int8_linear_matmul.default, (given, given), 0, 0, 1) < copied_bytes


def _int8_quantize(hidden: torch.Tensor, _threshold: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return (
        hidden.new_empty(hidden.shape, dtype=torch.int8),
        hidden.new_empty(hidden.shape[:-1].numel(), dtype=torch.float32),
        hidden.new_empty(0, dtype=torch.int64),
    )


def _int8_product(
    hidden: torch.Tensor, _quantized: torch.Tensor, weight: torch.Tensor, *_: Any, **__: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    return hidden.new_empty((*hidden.shape[:-1], weight.shape[0])), hidden.new_empty(0)


def _grouped_product(
    left: torch.Tensor, right: torch.Tensor, offsets: torch.Tensor | None = None, *_: Any, **__: Any
) -> torch.Tensor:
    """Return what products of rows with the weights of their experts give; torch's stand-in takes bf16 alone."""
    if left.dim() == 2 and right.dim() == 2 and offsets is not None:  # a gradient for each expert's weight
        return left.new_empty((len(offsets), left.shape[0], right.shape[1]))
    if left.dim() == 3 and right.dim() == 3:
        return left.new_empty((*left.shape[:2], right.shape[-1]))
    return left.new_empty((left.shape[-2], right.shape[-1]))


_QUANTIZED_SCRATCH: Mapping[str, Formula] = {
    "int8_vectorwise_quant": _int8_quantize_bytes,
    "int8_mixed_scaled_mm": _int8_product_bytes,
}
_QUANTIZED_FLOPS: Mapping[str, Formula] = {
    "gemm_4bit": lambda hidden, _packed, shape, *_, **__: 2 * hidden.numel() * shape[0],
    "int8_mixed_scaled_mm": lambda hidden, _quantized, weight, *_, **__: 2 * hidden.numel() * weight.shape[0],
}
