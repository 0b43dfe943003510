"""(IA)^3: learned vectors that scale keys, values and the inner activations of the MLP.

In each chosen layer, with l_k, l_v and l_ff learned and * elementwise:

    K <- l_k * K,    V <- l_v * V,    mlp_down(h) <- mlp_down(l_ff * h)

A decoder's layers that attend to an encoder have their cross-attention's keys and values scaled too. All
start at one, so that the step-0 model is the base model.

Source: Liu et al. 2022 (arXiv:2205.05638), section 3.3. The layers are peft's.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from autopeft.errors import DesignError
from autopeft.models import peft_gate
from autopeft.models.technique import Site, Technique
from autopeft.spec.block import Block, Quantization, first_shared, register
from autopeft.spec.model import ModelSummary

PEFT_TYPE = "IA3"
_SCALED_OUTPUT = ("key", "value")
_SCALED_CROSS = ("cross_key", "cross_value")
_SCALED_INPUT = "mlp_down"


@register
class Ia3(Technique):
    """Settings of (IA)^3: it has no size, only layers."""

    kind: ClassVar[str] = "ia3"
    # A prior, not a measurement: that of Liu et al. (section 3.5), who train with Adafactor.
    default_learning_rate: ClassVar[float] = 3e-3
    stage: ClassVar[int] = 1  # outside of LoRA: the key that is scaled is the key that LoRA made

    @property
    def mergeable(self) -> bool:
        """Return True: factors of a map's outputs or inputs are factors of its weight's rows or columns."""
        return True

    def check(self, model: ModelSummary, quantization: Quantization) -> None:
        """Refuse a model without maps of its own for keys, values and the way out of the MLP."""
        super().check(model, quantization)
        chosen = self.layer_indices(model)
        if any(model.first_layer_without(chosen, role) is not None for role in (*_SCALED_OUTPUT, _SCALED_INPUT)):
            fused = "; in a fused qkv the query would be scaled too" if "qkv" in model.roles else ""
            raise DesignError(
                f"(IA)^3 needs the roles key, value and mlp_down, but {model.architecture} has only "
                f"{', '.join(model.roles)}{fused}; take ia3 out of the space"
            )

    @classmethod
    def check_together(cls, blocks: Sequence[Block], model: ModelSummary) -> None:
        """Refuse two blocks in one layer: they would be one."""
        layer = first_shared(block.layer_indices(model) for block in blocks)
        if layer is not None:
            raise DesignError(f"a layer can have one ia3, but layer {layer} has two; take one away")

    def exports_to_peft(self, model: ModelSummary) -> bool:
        """Return True: peft scales any maps that it is given by path."""
        return True

    def describe(self) -> str:
        """Say the name."""
        return "(IA)^3"

    @classmethod
    def attach_all(cls, blocks: Sequence["Ia3"], site: Site) -> None:
        """Inject all blocks as one peft adapter."""
        outputs, inputs = _targets(blocks, site.summary)
        peft_gate.inject(site, PEFT_TYPE, outputs + inputs, {"feedforward_modules": inputs})

    @classmethod
    def merge(cls, blocks: Sequence["Ia3"], site: Site) -> None:
        """Let peft's layers do it."""
        outputs, inputs = _targets(blocks, site.summary)
        for path in outputs + inputs:
            peft_gate.fold(site, path)

    @classmethod
    def to_peft(cls, blocks: Sequence["Ia3"], site: Site) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:  # noqa: ARG003
        """Return what was injected, as peft would save it."""
        return peft_gate.extract(site)


def _targets(blocks: Sequence[Ia3], model: ModelSummary) -> tuple[list[str], list[str]]:
    """Return the maps whose output is scaled, and those whose input is."""
    layers = [model.layers[index].roles for block in blocks for index in block.layer_indices(model)]
    scaled = (*_SCALED_OUTPUT, *_SCALED_CROSS)
    outputs = [roles[role].path for roles in layers for role in scaled if role in roles]
    return outputs, [roles[_SCALED_INPUT].path for roles in layers]
