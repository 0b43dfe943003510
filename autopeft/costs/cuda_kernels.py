"""What CUDA's kernels allocate for themselves: attention's backward, and products of quantized weights.

From the source of PyTorch 2.13 and bitsandbytes 0.50; no GPU has confirmed it.

Omits: the workspace of cuDNN's attention, which Hopper and data-centre Blackwell prefer (`check_prefer_cudnn_attention`
in sdp_utils.cpp), and of convolutions; what cuBLASLt takes for a moment, at most 32 MiB.
"""

from collections.abc import Mapping
from math import prod
from typing import Any

import torch

from autopeft.costs.tracker import Formula

_aten = torch.ops.aten
_FEW_ROWS = 4
"""Up to so many rows are multiplied with 4-bit weights as they are, on every architecture."""


def cuda_scratch() -> dict[Any, Formula]:
    """Return, by operator packet, the bytes that an attention kernel holds besides its arguments and results."""
    return {
        _aten._scaled_dot_product_flash_attention_backward: _flash_backward_bytes,
        _aten._scaled_dot_product_efficient_attention_backward: _efficient_backward_bytes,
    }


def _flash_backward_bytes(_grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, *_: Any, **__: Any) -> int:
    """Return the workspace of CUDA's flash attention in the backward pass.

    The query's gradient is summed up in fp32, heads padded to 32 and queries to 128; where heads share
    keys, the gradients of key and value are expanded to all heads first.

    Source: `mha_bwd` in aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp.
    """
    batch, n_heads, n_queries, head_size = query.shape
    rows = batch * n_heads * _up(n_queries, 128)
    n_bytes = 4 * rows * (_up(head_size, 32) + 1)
    if n_heads != key.shape[1]:
        n_bytes += 2 * batch * n_heads * key.shape[2] * head_size * query.itemsize
    return n_bytes


def _efficient_backward_bytes(_grad: torch.Tensor, query: torch.Tensor, *_: Any, **__: Any) -> int:
    """Return the workspace of CUDA's memory-efficient attention in the backward pass.

    The query's gradient is summed up in fp32, in tiles of 64 or 128 queries by 64 or 128 channels, behind four words
    each; then one number for each query. Keys and values of heads up to 128 channels stay in registers.

    Source: `workspace_elements_gq` and `GradQTempStorage` in
        aten/src/ATen/native/transformers/cuda/mem_eff_attention/kernel_backward.h, and
        `_efficient_attention_backward` in ../attention_backward.cu.
    """
    batch, n_heads, n_queries, head_size = query.shape
    tile = 128 if query.itemsize == 2 and head_size > 64 else 64
    n_tiles = -(-n_queries // tile) * -(-head_size // tile)
    return 4 * batch * n_heads * (n_tiles * (tile * tile + 4) + n_queries)


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _product_4bit_bytes(
    hidden: torch.Tensor,
    _packed: torch.Tensor,
    shape: list[int],
    _absmax: torch.Tensor,
    block_size: int,
    _type: str,
    _bias: torch.Tensor | None = None,
    absmax_8bit: torch.Tensor | None = None,
    *_: Any,
    **__: Any,
) -> int:
    """Return the dequantized weight, and its scales, twice where an offset is added to them; nothing for few rows.

    Source: `gemm_4bit` and `_dequant_linear_fallback` in bitsandbytes/backends/cuda/ops.py.

    Omits: that up to 1,536 rows some architectures multiply without dequantizing.
    """
    n_rows = hidden.numel() // hidden.shape[-1]
    if n_rows <= _FEW_ROWS and hidden.shape[-1] % block_size == 0:
        return 0
    return prod(shape) * hidden.itemsize + (0 if absmax_8bit is None else 8 * absmax_8bit.numel())


def _int8_quantize_bytes(hidden: torch.Tensor, *_: Any, **__: Any) -> int:
    """Return what the search for outliers takes: magnitudes in fp16, and a mask.

    Source: `int8_vectorwise_quant` in bitsandbytes/backends/cuda/ops.py.
    """
    return 3 * hidden.numel()


def _int8_product_bytes(hidden: torch.Tensor, *_: Any, out_val: Any, **__: Any) -> int:
    """Return the integer sums, and the result in fp16 where another dtype is asked for.

    Source: `int8_linear_matmul` and `int8_mm_dequant` in bitsandbytes/backends/cuda/ops.py.
    """
    n: int = out_val[0].numel()
    return 4 * n if hidden.dtype == torch.float16 else 6 * n


CUDA_QUANTIZED_SCRATCH: Mapping[str, Formula] = {
    "gemm_4bit": _product_4bit_bytes,
    "int8_vectorwise_quant": _int8_quantize_bytes,
    "int8_mixed_scaled_mm": _int8_product_bytes,
}
"""By name of bitsandbytes' operator."""
