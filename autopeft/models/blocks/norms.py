"""Norm tuning: the factors and biases of normalisations train, and nothing else.

A chosen layer's norms (LayerNorm, RMSNorm, and those of queries and keys where an architecture has them) go on
training from what they are, so that the step-0 model is the base model.

Source: Zhao et al. 2023 (arXiv:2312.11420), section 3 (LN-tuning of attention blocks).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from autopeft.errors import DesignError
from autopeft.models.selective import SelectiveTechnique
from autopeft.models.technique import Site
from autopeft.spec.block import Quantization, register
from autopeft.spec.model import ModelSummary, NormSummary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PEFT_TYPE = "LN_TUNING"
_PEFT_NAME = "ln_tuning_layers"


@register
class Norms(SelectiveTechnique):
    """Settings of norm tuning.

    Attributes:
        outer: Whether the norms outside of the layers train too: that of the embeddings, and the last one.
    """

    kind: ClassVar[str] = "norms"
    # A prior, not a measurement.
    default_learning_rate: ClassVar[float] = 1e-3

    outer: bool = False

    def norms(self, model: ModelSummary) -> Iterator[NormSummary]:
        """Yield the norms that train."""
        for index in self.layer_indices(model):
            yield from model.layers[index].norms
        if self.outer:
            yield from model.outer_norms

    def base_parameters(self, model: ModelSummary) -> Iterator[str]:
        """Yield factors and biases."""
        for norm in self.norms(model):
            yield from (f"{norm.path}.{name}" for name in ("weight", "bias")[: 1 + norm.has_bias])

    def check(self, model: ModelSummary, quantization: Quantization) -> None:
        """Refuse layers without a norm that has factors."""
        super().check(model, quantization)
        for index in self.layer_indices(model):
            if not model.layers[index].norms:
                raise DesignError(
                    f"norms needs normalisations with learned factors, but layer {index} of {model.architecture} has "
                    "none; change norms.layers, or take norms out of the space"
                )

    def exports_to_peft(self, model: ModelSummary) -> bool:
        """Return True: peft takes norms by path."""
        return True

    def describe(self) -> str:
        """Say which norms."""
        return "norms, also outside of the layers" if self.outer else "norms"

    @classmethod
    def to_peft(cls, blocks: Sequence["Norms"], site: Site) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Return peft's settings, and the norms under its names."""
        norms = [norm.path for block in blocks for norm in block.norms(site.summary)]
        names = [name for block in blocks for name in block.base_parameters(site.summary)]
        tensors = {_peft_name(name): site.model.get_parameter(name).detach().cpu().contiguous() for name in names}
        return {"peft_type": PEFT_TYPE, "target_modules": norms}, tensors

    @classmethod
    def from_peft(
        cls,
        tensors: Mapping[str, torch.Tensor],
        model: "PreTrainedModel",  # noqa: ARG003
    ) -> dict[str, torch.Tensor]:
        """Return the norms, and the head, by their places."""
        own = {name.removeprefix("base_model.model."): tensor for name, tensor in tensors.items()}
        return {name.replace(f".{_PEFT_NAME}.", "."): tensor for name, tensor in own.items()}


def _peft_name(name: str) -> str:
    module, _, parameter = name.rpartition(".")
    return f"{module}.{_PEFT_NAME}.{parameter}"
