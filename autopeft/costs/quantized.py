"""A base on the meta device with quantized layers: bitsandbytes' own, holding packed weights without data.

The layers are the real ones, so that attaching, hooks and the forward take the paths that they take
in training. What a quantized product needs while it runs is in `autopeft.costs.kernels`.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from autopeft.models.base import Base
from autopeft.models.quantization import convert_layers, quantization_config, settle, skipped_paths
from autopeft.spec.block import Quantization
from autopeft.spec.training import Precision

_BLOCK_SIZE = 64
"""Weights that share a scale in 4-bit storage; bitsandbytes' default, which transformers keeps."""
_N_CODES = 16
_NESTED_BLOCK_SIZE = 256
"""Scales that share a scale where they are quantized too."""
_N_NESTED_CODES = 256


@dataclass(kw_only=True)
class PackedScales:
    """What double quantisation keeps of the scales: theirs, and what their codes of 8 bits mean, fp32."""

    absmax: torch.Tensor
    code: torch.Tensor
    dtype: torch.dtype = torch.float32
    blocksize: int = _NESTED_BLOCK_SIZE
    nested: bool = False


@dataclass(kw_only=True)
class PackedState:
    """What a 4-bit layer keeps beside its packed weight, with the attributes of bitsandbytes' `QuantState`.

    Attributes:
        absmax: Scale of each block: fp32, or a code of 8 bits where the scales are quantized too.
        code: The values that a code of 4 bits can mean; fp32.
        shape: Logical shape of the weight, [out_features, in_features].
        dtype: Of the dequantized weight: what the weight was before.
        offset: Mean of the scales, which was taken off before quantizing them.
        state2: What the codes of the scales mean.
    """

    absmax: torch.Tensor
    code: torch.Tensor
    shape: torch.Size
    dtype: torch.dtype
    quant_type: str
    blocksize: int = _BLOCK_SIZE
    offset: torch.Tensor | None = None
    state2: PackedScales | None = None

    @property
    def nested(self) -> bool:
        """Return whether the scales are quantized too."""
        return self.state2 is not None


def quantize_meta(base: Base, quantization: Quantization, precision: Precision) -> Base:
    """Return a copy of an unquantized base on the meta device, stored as `load_base` would store it.

    Args:
        base: From `build_meta`; returned itself where nothing is to be quantized.
        quantization: Storage of the linear maps of the layers.
        precision: Dtype that 4-bit weights are multiplied in.

    Raises:
        MissingDependencyError: bitsandbytes is not installed.
        ModelError: The model has no linear map to quantize.
    """
    if quantization == base.quantization:
        return base
    compute_dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    config = quantization_config(
        quantization, skip=skipped_paths(base.model, base.summary.new_modules), compute_dtype=compute_dtype
    )
    model = copy.deepcopy(base.model)
    convert_layers(model, config)
    settle(model, quantization)
    model.train(base.model.training)  # converted layers are new, and new modules train
    for module in model.modules():
        _pack(module)
    return Base(
        model=model,
        summary=base.summary,
        quantization=quantization,
        device=base.device,
        head=base.head,
        kernel=base.kernel,
    )


def _pack(module: nn.Module) -> None:
    """Give a quantized layer a weight of its stored size; other modules stay as they are."""
    weight: Any = getattr(module, "weight", None)
    if hasattr(weight, "quant_state"):
        state = _packed_state(weight)
        packed = _meta((weight.numel() + 1) // 2, 1, dtype=torch.uint8)
        module.weight = type(weight)(
            packed,
            requires_grad=False,
            quant_state=state,
            quant_type=weight.quant_type,
            bnb_quantized=True,
            module=module,
        )
    elif hasattr(weight, "SCB"):
        module.weight = type(weight)(
            _meta(*weight.shape, dtype=torch.int8),
            requires_grad=False,
            has_fp16_weights=False,
            SCB=_meta(weight.shape[0], dtype=torch.float32),
        )


def _packed_state(weight: Any) -> PackedState:
    """Return what is kept beside a weight that is about to be packed."""
    n_blocks = -(-weight.numel() // _BLOCK_SIZE)
    nested = weight.compress_statistics
    return PackedState(
        absmax=_meta(n_blocks, dtype=torch.uint8 if nested else torch.float32),
        code=_meta(_N_CODES, dtype=torch.float32),
        shape=weight.shape,
        dtype=weight.dtype,
        quant_type=weight.quant_type,
        offset=_meta(dtype=torch.float32) if nested else None,
        state2=PackedScales(
            absmax=_meta(-(-n_blocks // _NESTED_BLOCK_SIZE), dtype=torch.float32),
            code=_meta(_N_NESTED_CODES, dtype=torch.float32),
        )
        if nested
        else None,
    )


def _meta(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
