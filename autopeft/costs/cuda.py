"""How a step behaves on CUDA, played on fake CPU tensors: torch without CUDA can't even pretend to have it.

Three things differ in what lives: attention is flash or memory-efficient, with or without a mask;
dropout keeps a mask of one byte; and autocast computes norms, softmax and losses in fp32.

What kernels take for themselves is in `autopeft.costs.cuda_kernels`, what the allocator makes of it all in
`autopeft.costs.allocator`.

Held against published runs of a 3B model on one kind of GPU (studies/benchmarks/published.py), not yet against
measurements of autopeft's own. Omits: cuDNN's attention, which Hopper and data-centre Blackwell prefer: it keeps what
flash attention keeps, with another workspace; that int8 layers in training quantize their input instead of dequantizing
their weight (both keep the input; the forward's scratch memory differs, and is rarely the peak).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_aten = torch.ops.aten
CUBLAS_WORKSPACES = (8_519_680, 8_519_680)
"""Bytes that cuBLAS keeps for the forward's thread and for the backward's: `:4096:2:16:8`, in KiB by count.

Each thread has a handle of its own, and each handle and stream a workspace, which the first product takes
from the caching allocator. Hopper and later take 32 MiB each.

Source: `parseChosenWorkspaceSize` and `getCurrentCUDABlasHandle` in aten/src/ATen/cuda/CublasHandlePool.cpp.
"""
_MASK_ALIGNMENT = 16
"""Elements that a row of a mask is padded to a multiple of, for the memory-efficient kernel."""
_HEAD_ALIGNMENT = 8
"""Channels that a head is padded to a multiple of, for the flash kernel."""
_LARGEST_FLASH_HEAD = 256

_FP32_NAMES = """
softmax log_softmax softmin layer_norm group_norm norm normalize cumsum cumprod prod sum exp expm1 log log10 log1p log2
pow rsqrt reciprocal softplus cosine_similarity cross_entropy nll_loss mse_loss l1_loss smooth_l1_loss kl_div
binary_cross_entropy_with_logits
"""
_IN_FP32: frozenset[Callable[..., Any]] = frozenset(
    function
    for name in _FP32_NAMES.split()
    for module in (torch, functional, torch.Tensor)
    if callable(function := getattr(module, name, None))
)
"""What autocast computes in fp32 on CUDA.

Source: "CUDA Ops that can autocast to float32", the AMP page of PyTorch's documentation.
"""


class CudaKernels(TorchFunctionMode):
    """Inside a `with` block, make operations allocate and keep what they would on CUDA."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call CUDA's kernel in the place of the CPU's, or the function itself."""
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            return attention(*args, **kwargs)
        if func is functional.dropout:
            return _dropout(*args, **kwargs)
        if func in _IN_FP32 and torch.is_autocast_enabled("cpu"):
            args = tuple(_to_fp32(value) for value in args)
            kwargs = {name: _to_fp32(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Run `scaled_dot_product_attention` with the kernel that CUDA would choose.

    Flash for half precision without a mask, memory-efficient otherwise; both keep the output and a sum
    for each query instead of the scores.

    Source: `can_use_flash_attention` and `can_use_mem_efficient_attention` in
        aten/src/ATen/native/transformers/cuda/sdp_utils.cpp.
    """
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        attn_mask = attn_mask.to(dtype) if attn_mask is not None and attn_mask.is_floating_point() else attn_mask
    head_size = query.shape[-1]
    if attn_mask is None and query.itemsize == 2 and head_size <= _LARGEST_FLASH_HEAD:
        query, key, value = (_pad(tensor, _HEAD_ALIGNMENT) for tensor in (query, key, value))
        padded: torch.Tensor = _aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, scale=scale
        )[0]
        return padded[..., :head_size]
    if enable_gqa:
        n_groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(n_groups, 1), value.repeat_interleave(n_groups, 1)
    bias = None
    if attn_mask is not None:
        shape = (*query.shape[:-1], key.shape[-2])
        bias = _as_bias(attn_mask, query.dtype)
        n_keys = bias.shape[-1]
        bias = _pad(bias, _MASK_ALIGNMENT)[..., :n_keys].expand(shape)
    keep_sums = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    attended: torch.Tensor = _aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, keep_sums, dropout_p, is_causal, scale=scale
    )[0]
    return attended


def _dropout(hidden: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    if inplace or not training or p == 0:
        return functional.dropout(hidden, p, training, inplace)
    return torch.native_dropout(hidden, p, True)[0]


def _to_fp32(value: Any) -> Any:
    reduced = isinstance(value, torch.Tensor) and value.is_floating_point() and value.itemsize == 2
    return value.float() if reduced else value


def _as_bias(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a mask as what is added to the scores; a boolean one becomes a tensor of its own."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, 0.0) if mask.dtype == torch.bool else mask


def _pad(tensor: torch.Tensor, multiple: int) -> torch.Tensor:
    excess = tensor.shape[-1] % multiple
    return nn.functional.pad(tensor, (0, multiple - excess)) if excess else tensor
