"""Prefix tuning: trainable keys and values that every token of a layer can attend to.

In each chosen layer, with P the length: K <- [P_K; K], V <- [P_V; V], and the mask gets P open
columns. The step-0 model is not the base model: prefixes take attention from the first step on.
With `projection`, an MLP over smaller embeddings computes P_K and P_V while they train, and is folded away in an
export. With `gate`, P_K and P_V are scaled by a number in (0, 1) that is computed from the layer's input.

Source: Li & Liang 2021 (arXiv:2101.00190), section 4.2, and section 4.3 for the projection; prefixes in
chosen layers as in P-tuning v2, Liu et al. 2022 (arXiv:2110.07602); the gate of UniPELT, Mao et al. 2022
(arXiv:2110.07577), section 3.2.
Omits: keys are learned as they stand after a rotary embedding and after a norm of keys, as in peft. Where layers
have a sliding window, the prefix stays in sight. Cross-attention reads no prefix.
"""

import math
from collections.abc import Sequence
from functools import partial
from inspect import signature
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from autopeft.errors import DesignError
from autopeft.models.gate import gate_maker
from autopeft.models.prefix_attention import BYPASSING, NAME, switch_attention
from autopeft.models.prefix_states import LayerPrefix, PrefixStates, ProjectedStates, Reparameterisation
from autopeft.models.roles import attention_path, position_table
from autopeft.models.technique import Site, Technique
from autopeft.spec.block import Block, Quantization, first_shared, register
from autopeft.spec.model import LayerSummary, ModelSummary

PEFT_TYPE = "PREFIX_TUNING"
DEFAULT_PROJECTION_SIZE = 512
"""The width of Li & Liang's smaller embeddings for generation from tables; 800 for summaries (section 4.3)."""


@register
class Prefix(Technique):
    """Settings of a prefix.

    A prefix in every layer counts as tokens before the text: positions move by its length, as in
    stock peft. In chosen layers only, positions stay.

    Attributes:
        length: Key-value pairs in each layer, in tokens.
        projection: Whether an MLP computes them while they train.
        projection_size: Width of the MLP's embeddings and of its inner layer.
        gate: Whether they are scaled by a learned gate.
    """

    kind: ClassVar[str] = "prefix"
    size_field: ClassVar[str | None] = "length"
    # A prior, not a measurement: prefixes start small and reach the loss through attention alone, and are
    # usually trained at about ten times the rate of LoRA.
    default_learning_rate: ClassVar[float] = 1e-2
    slow_start: ClassVar[bool] = True

    length: Annotated[int, Field(ge=1)]
    projection: bool = False
    projection_size: Annotated[int, Field(ge=1)] = DEFAULT_PROJECTION_SIZE
    gate: bool = False

    @property
    def starts_as_base(self) -> bool:
        """Return False: prefixes take attention from the first step on."""
        return False

    def check(self, model: ModelSummary, quantization: Quantization) -> None:
        """Refuse a model whose attention cannot be given prefixes, and a prefix that would take all positions."""
        super().check(model, quantization)
        if not model.has_attention_interface and model.model_type not in BYPASSING:
            raise DesignError(
                f"a prefix needs a model that computes attention through transformers' attention interface, or one of "
                f"{', '.join(BYPASSING)}, but {model.architecture} is neither; take prefix out of the space"
            )
        if self.exports_to_peft(model) and model.n_positions is not None and self.length >= model.n_positions:
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

    def resolve(self, model: ModelSummary) -> Block:
        """Write the size of no projection as the default."""
        resolved = super().resolve(model)
        return resolved if self.projection else resolved.model_copy(update={"projection_size": DEFAULT_PROJECTION_SIZE})

    def exports_to_peft(self, model: ModelSummary) -> bool:
        """Return whether the prefix is in all layers of a model with a cache, and ungated: so peft passes it.

        In an encoder-decoder, peft's prefix is in the decoder alone; from a sliding window it slides out.
        """
        everywhere = len(self.layer_indices(model)) == model.n_layers
        slides = model.sliding_window is not None and model.sliding_window < (model.n_positions or math.inf)
        two_stacks = any(layer.stack for layer in model.layers)
        return model.takes_cache and everywhere and not (self.gate or slides or two_stacks)

    def describe(self) -> str:
        """Say the length, and how it is made."""
        parts = (f" from an MLP of {self.projection_size}" if self.projection else "", ", gated" if self.gate else "")
        return f"prefix of {self.length}{''.join(parts)}"

    @classmethod
    def attach_all(cls, blocks: Sequence["Prefix"], site: Site) -> None:
        """Put prefixes beside the attention modules, and attention functions that read them in place."""
        summary = site.summary
        paths = [path for block in blocks for path in block._attach_states(site)]
        switch_attention(site, paths)
        if len(blocks) == 1 and blocks[0].exports_to_peft(summary):
            backbone = site.model.base_model
            site.pre_hook(backbone, partial(_shift_positions, blocks[0].length))

    def _attach_states(self, site: Site) -> list[str]:
        """Put this block's prefixes into the model, and return where they are."""
        layers = [(index, site.summary.layers[index]) for index in self.layer_indices(site.summary)]
        make_gate = gate_maker(site) if self.gate else None
        if self.projection and layers:
            first = attention_path(layers[0][1])
            site.add(first, f"{NAME}_mlp", Reparameterisation(self.length, self.projection_size))
            shared = site.module(f"{first}.{NAME}_mlp")
        for index, layer in layers:
            n_heads, head_size = _key_value_shape(site.summary, layer)
            gate = None if make_gate is None else make_gate(index, site.summary.hidden_size)
            states: LayerPrefix
            if self.projection:
                states = ProjectedStates(shared, n_heads, head_size, self.projection_size, gate)
            else:
                states = PrefixStates.small(n_heads, self.length, head_size, gate)
            path = attention_path(layer)
            site.add(path, NAME, states)
            if gate is not None:
                site.pre_hook(site.module(path), getattr(site.module(path), NAME).read)
        return [attention_path(layer) for _, layer in layers]

    @classmethod
    def to_peft(cls, blocks: Sequence["Prefix"], site: Site) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Return peft's settings, and all prefixes as the one matrix that it keeps."""
        summary = site.summary
        width = summary.n_key_value_heads * summary.head_size
        columns = []
        for layer in summary.layers:
            states = getattr(site.module(attention_path(layer)), NAME)
            # [heads, length, head_size] each; peft has [length, heads x head_size], the key before the value
            columns += [tensor.detach().transpose(0, 1).flatten(1) for tensor in states()]
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


def _key_value_shape(model: ModelSummary, layer: LayerSummary) -> tuple[int, int]:
    """Return heads and their size; T5's size does not follow from its width, and a fused map says nothing."""
    key = layer.roles.get("key")
    n_heads = model.n_key_value_heads
    return n_heads, model.head_size if key is None else key.out_features // n_heads


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
