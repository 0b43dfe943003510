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
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from autopeft.errors import DesignError
from autopeft.models.gate import gate_maker
from autopeft.models.positions import backbone, shift_positions
from autopeft.models.prefix_attention import BYPASSING, NAME, reads_prefix, switch_attention
from autopeft.models.prefix_states import LayerPrefix, PrefixStates, ProjectedStates, Reparameterisation
from autopeft.models.roles import attention_path
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
    def merge_obstacle(self) -> str:
        """Say what no weight can hold."""
        return "keys and values that tokens attend to are no weights"

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
        without = model.first_layer_without(self.layer_indices(model), "query", "qkv")
        if without is not None:
            raise DesignError(
                f"a prefix needs layers with the role query or qkv, but layer {without} of {model.architecture} has "
                f"{', '.join(model.layers[without].roles) or 'none'}; take prefix out of the space, or change "
                "prefix.layers"
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
            site.pre_hook(backbone(site.model), partial(shift_positions, blocks[0].length))

    def _attach_states(self, site: Site) -> list[str]:
        """Put this block's prefixes into the model, and return where they are."""
        layers = [(index, site.summary.layers[index]) for index in self.layer_indices(site.summary)]
        make_gate = gate_maker(site) if self.gate else None
        if self.projection and layers:
            shared = Reparameterisation(self.length, self.projection_size)
            site.add(attention_path(layers[0][1]), f"{NAME}_mlp", shared)
        for index, layer in layers:
            n_heads, head_size = _key_value_shape(site.summary, layer)
            gate = None if make_gate is None else make_gate(index, site.summary.hidden_size)
            states: LayerPrefix
            if self.projection:
                states = ProjectedStates(shared, n_heads, head_size, self.projection_size, gate)
            else:
                states = PrefixStates.small(n_heads, self.length, head_size, gate)
            path = attention_path(layer)
            if site.summary.model_type not in BYPASSING and not reads_prefix(site.module(path)):
                raise DesignError(
                    f"a prefix needs layers that compute attention through transformers' attention interface, but "
                    f"layer {index} of {site.summary.architecture} does not; change prefix.layers"
                )
            site.add(path, NAME, states)
            if gate is not None:
                site.pre_hook(site.module(path), getattr(site.module(path), NAME).read)
        return [attention_path(layer) for _, layer in layers]

    @classmethod
    def to_peft(cls, blocks: Sequence["Prefix"], site: Site) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Return peft's settings, and all prefixes as the one matrix that it keeps."""
        summary = site.summary
        n_heads, head_size = _key_value_shape(summary, summary.layers[0])
        columns = []
        for layer in summary.layers:
            prefix = getattr(site.module(attention_path(layer)), NAME)
            # [heads, length, head_size] each; peft has [length, heads x head_size], the key before the value
            columns += [tensor.detach().transpose(0, 1).flatten(1) for tensor in prefix.states()]
        settings = {
            "peft_type": PEFT_TYPE,
            "num_virtual_tokens": blocks[0].length,
            "num_layers": summary.n_layers,
            "num_attention_heads": n_heads,
            "token_dim": n_heads * head_size,
            "num_transformer_submodules": 1,
            "encoder_hidden_size": summary.hidden_size,
            "prefix_projection": False,
        }
        return settings, {"prompt_embeddings": torch.cat(columns, dim=1).cpu().contiguous()}


def _key_value_shape(model: ModelSummary, layer: LayerSummary) -> tuple[int, int]:
    """Return heads and their size; T5's size does not follow from its width, and a fused map has more than keys."""
    key, fused = layer.roles.get("key"), layer.roles.get("qkv")
    if key is not None:
        return model.n_key_value_heads, key.out_features // model.n_key_value_heads
    if fused is not None and fused.out_features % model.head_size == 0:  # StarCoder: one head of keys and values
        return max(1, (fused.out_features // model.head_size - model.n_heads) // 2), model.head_size
    return model.n_key_value_heads, model.head_size
