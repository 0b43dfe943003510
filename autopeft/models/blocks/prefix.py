"""Prefix tuning: trainable keys and values that every token of a layer can attend to.

In each chosen layer, with P the length: K <- [P_K; K], V <- [P_V; V], and the mask gets P open
columns. The step-0 model is not the base model: prefixes take attention from the first step on.

Source: Li & Liang 2021 (arXiv:2101.00190), section 4.2, without the reparameterisation; prefixes in
chosen layers as in P-tuning v2, Liu et al. 2022 (arXiv:2110.07602).
Omits: keys are learned as they stand after a rotary embedding, as peft does.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from autopeft.errors import DesignError, ModelError
from autopeft.models.roles import attention_path, position_table
from autopeft.models.technique import Site, Technique
from autopeft.spec.block import Block, Quantization, first_shared, register
from autopeft.spec.model import ModelSummary

PEFT_TYPE = "PREFIX_TUNING"
_NAME = "autopeft_prefix"
_KERNELS = ("sdpa", "eager")


@register
class Prefix(Technique):
    """Settings of a prefix.

    A prefix in every layer counts as tokens before the text: positions move by its length, as in
    stock peft. In chosen layers only, positions stay.

    Attributes:
        length: Key-value pairs in each layer, in tokens.
    """

    kind: ClassVar[str] = "prefix"
    size_field: ClassVar[str | None] = "length"
    # A prior, not a measurement: prefixes start small and reach the loss through attention alone, and are
    # usually trained at about ten times the rate of LoRA.
    default_learning_rate: ClassVar[float] = 1e-2
    slow_start: ClassVar[bool] = True

    length: Annotated[int, Field(ge=1)]

    @property
    def starts_as_base(self) -> bool:
        """Return False: prefixes take attention from the first step on."""
        return False

    def check(self, model: ModelSummary, quantization: Quantization) -> None:
        """Refuse a model whose attention cannot be given prefixes, and a prefix that leaves no positions."""
        super().check(model, quantization)
        if not model.has_attention_interface:
            raise DesignError(
                f"a prefix needs a model that computes attention through transformers' attention interface, but "
                f"{model.architecture} does not; take prefix out of the space"
            )
        if model.n_positions is not None and self.length >= model.n_positions:
            raise DesignError(
                f"length < n_positions must hold, but got length={self.length}, n_positions={model.n_positions}; "
                "lower prefix.length"
            )

    @classmethod
    def check_together(cls, blocks: Sequence[Block], model: ModelSummary) -> None:
        """Refuse two prefixes in one layer: they would be one longer prefix."""
        layer = first_shared(block.layer_indices(model) for block in blocks)
        if layer is not None:
            raise DesignError(f"a layer can have one prefix, but layer {layer} has two; add their lengths")

    def exports_to_peft(self, model: ModelSummary) -> bool:
        """Return whether the prefix is in all layers of a model with a cache, which is how peft passes it."""
        return model.takes_cache and len(self.layer_indices(model)) == model.n_layers

    def describe(self) -> str:
        """Say the length."""
        return f"prefix of {self.length}"

    @classmethod
    def attach_all(cls, blocks: Sequence["Prefix"], site: Site) -> None:
        """Put prefixes beside the attention modules, and an attention function that reads them in place."""
        summary = site.summary
        for block in blocks:
            for index in block.layer_indices(summary):
                states = PrefixStates(summary.n_key_value_heads, block.length, summary.head_size)
                site.add(attention_path(summary.layers[index]), _NAME, states)
        _switch_attention(site)
        if len(blocks) == 1 and blocks[0].exports_to_peft(summary):
            backbone = site.model.base_model
            site.pre_hook(backbone, partial(_shift_positions, blocks[0].length))

    @classmethod
    def to_peft(cls, blocks: Sequence["Prefix"], site: Site) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Return peft's settings, and all prefixes as the one matrix that it keeps."""
        summary = site.summary
        width = summary.n_key_value_heads * summary.head_size
        columns = []
        for layer in summary.layers:
            states = getattr(site.module(attention_path(layer)), _NAME)
            # [heads, length, head_size] each; peft has [length, heads x head_size], the key before the value
            columns += [tensor.detach().transpose(0, 1).flatten(1) for tensor in (states.keys, states.values)]
        settings = {
            "peft_type": PEFT_TYPE,
            "num_virtual_tokens": blocks[0].length,
            "num_layers": summary.n_layers,
            "num_attention_heads": summary.n_key_value_heads,
            "token_dim": width,
            "num_transformer_submodules": 1,
            "encoder_hidden_size": summary.hidden_size,
            "prefix_projection": False,
        }
        return settings, {"prompt_embeddings": torch.cat(columns, dim=1).cpu().contiguous()}


class PrefixStates(nn.Module):
    """The keys and values of one layer, each [n_key_value_heads, length, head_size]."""

    def __init__(self, n_heads: int, length: int, head_size: int) -> None:
        super().__init__()
        # Small, so that a prefix starts as tokens that say nothing and not as noise of the size of real values.
        self.keys = nn.Parameter(torch.randn(n_heads, length, head_size) * 0.02)
        self.values = nn.Parameter(torch.randn(n_heads, length, head_size) * 0.02)

    def extend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, *, causal: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return key, value and mask with the prefix before them.

        Args:
            query: [batch, heads, queries, head_size].
            key: [batch, key-value heads, keys, head_size].
            value: Like `key`.
            mask: Broadcastable to [batch, heads, queries, keys], boolean (open) or additive, or None.
            causal: What None means: no token sees a later one.
        """
        n_queries, n_keys, length = query.shape[2], key.shape[2], self.keys.shape[1]
        if mask is None and causal and n_queries > 1:
            # A kernel that is told "causal" would align that triangle with the prefix: spell it out.
            later = torch.ones(n_queries, n_keys, dtype=torch.bool, device=query.device).triu(1)
            mask = torch.zeros_like(later, dtype=query.dtype).masked_fill(later, torch.finfo(query.dtype).min)[
                None, None
            ]
        if mask is not None:
            mask = functional.pad(mask, (length, 0), value=mask.dtype == torch.bool)
        batch = key.shape[0]
        key = torch.cat([self.keys.to(key.dtype).expand(batch, -1, -1, -1), key], dim=2)
        value = torch.cat([self.values.to(value.dtype).expand(batch, -1, -1, -1), value], dim=2)
        return key, value, mask


def _attention(
    kernel: str,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> Any:
    """Compute attention with one of transformers' kernels, after the module's prefix where it has one."""
    states = getattr(module, _NAME, None)
    if isinstance(states, PrefixStates):
        causal = options.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        key, value, attention_mask = states.extend(query, key, value, attention_mask, causal=bool(causal))
    return _kernel(kernel, module)(module, query, key, value, attention_mask, **options)


def _kernel(kernel: str, module: nn.Module) -> Callable[..., Any]:
    """Return the attention function; each architecture's file has an eager one of its own."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if kernel == "eager":
        eager: Callable[..., Any] = sys.modules[type(module).__module__].eager_attention_forward
        return eager
    function: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS[kernel]
    return function


def _switch_attention(site: Site) -> None:
    """Make the model compute attention through `_attention`, until it is detached.

    The mask registry needs the name too: without it transformers makes no mask, and padding is seen.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    for kernel in _KERNELS:
        ALL_ATTENTION_FUNCTIONS.register(f"{_NAME}_{kernel}", partial(_attention, kernel))
        ALL_MASK_ATTENTION_FUNCTIONS.register(f"{_NAME}_{kernel}", ALL_MASK_ATTENTION_FUNCTIONS[kernel])
    attentions = [site.module(attention_path(layer)) for layer in site.summary.layers]
    owners = (site.model, site.model.base_model, *attentions)
    kernels = {id(owner.config): (owner.config, owner.config._attn_implementation) for owner in owners}
    for config, kernel in kernels.values():
        if kernel not in _KERNELS:
            raise ModelError(
                f"a prefix needs the attention kernel {' or '.join(_KERNELS)}, but the model uses {kernel!r}"
            )
        site.on_detach(partial(setattr, config, "_attn_implementation", kernel))
    for config, kernel in kernels.values():
        config._attn_implementation = f"{_NAME}_{kernel}"


def _shift_positions(length: int, backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Move the positions of the backbone's tokens by the length of the prefix, as peft does.

    Omits: where a position would lie beyond a learned table, the table's last one is taken; peft
    fails there.
    """
    names = signature(backbone.forward).parameters
    inputs = {**dict(zip(names, args, strict=False)), **kwargs}
    tokens = inputs.get("input_ids")
    positions = inputs.get("position_ids")
    table = position_table(backbone)
    padding = None if table is None else getattr(table, "padding_idx", None)
    if positions is not None:
        positions = positions + length
    else:
        cache = inputs.get("past_key_values")
        start = length + (0 if cache is None else cache.get_seq_length())
        shape = inputs["inputs_embeds"].shape[:2] if tokens is None else tokens.shape
        device = inputs["inputs_embeds"].device if tokens is None else tokens.device
        positions = torch.arange(start, start + shape[1], device=device)[None]
        if padding is not None:
            # RoBERTa counts real tokens from padding + 1; where padding itself stands does not matter.
            real = torch.ones(shape, device=device, dtype=torch.long) if tokens is None else tokens.ne(padding).long()
            positions = real.cumsum(1) + start + padding
    if table is not None:
        last = table.num_embeddings - 1 - getattr(table, "offset", 0)  # OPT's table starts later
        positions = positions.clamp(max=last)
    return (), {**inputs, "position_ids": positions}
