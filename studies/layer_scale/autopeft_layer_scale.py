"""LayerScale: a factor for each feature of what a sublayer adds to the residual stream.

With h the output of a sublayer's last linear map and g a vector of its width, h <- g * h. The factors start at one,
so that the step-0 model is the base model.

Source: Touvron et al. 2021 (arXiv:2103.17239), section 2: diag(λ) after attention and MLP. There the factors start
near zero, for a network that is trained from scratch.
"""

from typing import Any, ClassVar, Literal

import torch
from torch import nn

from autopeft.errors import DesignError
from autopeft.models.technique import Site, Technique
from autopeft.spec.block import Quantization, register
from autopeft.spec.model import ModelSummary

LAST_MAPS = {"attention": ("attention_output",), "mlp": ("mlp_down",), "both": ("attention_output", "mlp_down")}


@register
class LayerScale(Technique):
    """Settings of LayerScale.

    Attributes:
        at: The sublayers that are scaled.
    """

    kind: ClassVar[str] = "layer_scale"
    default_learning_rate: ClassVar[float] = 1e-2

    at: Literal["attention", "mlp", "both"] = "both"

    def check(self, model: ModelSummary, quantization: Quantization) -> None:
        """Refuse a sublayer that the model's layers lack."""
        super().check(model, quantization)
        for role in LAST_MAPS[self.at]:
            if role not in model.roles:
                raise DesignError(
                    f"layer_scale at {self.at} needs the role {role}, but the model has only "
                    f"{', '.join(model.roles)}; change layer_scale.at"
                )

    def describe(self) -> str:
        """Say which sublayers are scaled."""
        return f"LayerScale of {'attention and MLP' if self.at == 'both' else self.at}"

    def attach(self, site: Site) -> None:
        """Put a vector of factors behind the last linear map of each sublayer."""
        for layer in self.layer_indices(site.summary):
            summary = site.summary.layers[layer]
            for role in LAST_MAPS[self.at]:
                scale = Scale(summary.roles[role].out_features)
                site.add(summary.path, f"layer_scale_{role}", scale)
                site.hook(site.linear(layer, role), scale.after)


class Scale(nn.Module):
    """g * h, for h of [..., width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.ones(width))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the scaled features, in the dtype of its input."""
        return hidden * self.factors.to(hidden.dtype)

    def after(self, _module: nn.Module, _args: Any, hidden: torch.Tensor) -> Any:
        """Scale what a linear map returns; the signature is that of a forward hook."""
        return self(hidden)
