"""MiSS: one small matrix, shared by all shards of a linear map's input, y = W x + D^T sum_j x_j.

With x cut into shards x_j of `rank` features (the last one padded with zeros), D is [rank, out_features]; so
the update repeats D^T along the input. D starts at zero, so that the step-0 model is the base model.

Source: Kang & Yin 2024 (arXiv:2409.15371), section 3, the efficient form.
Omits: `bat`, whose peft layer takes the base's weight past whatever else is on the map, and `mini`. peft's layer, which
wraps `nn.Linear` alone and has one rank for all maps.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional

from autopeft.errors import DesignError
from autopeft.models.linear_technique import UnscaledTechnique
from autopeft.spec.block import Quantization, register
from autopeft.spec.model import LinearSummary, ModelSummary


@register
class MiSS(UnscaledTechnique):
    """Settings of a MiSS block.

    Attributes:
        rank: Features of a shard.
    """

    kind: ClassVar[str] = "miss"
    peft_type: ClassVar[str] = "MISS"
    peft_names: ClassVar[Mapping[str, str]] = {"shard": "miss_block"}
    # A prior, not a measurement: LoRA's of here. A step on D moves in_features / rank columns of the weight at once.
    default_learning_rate: ClassVar[float] = 1e-3

    def check(self, model: ModelSummary, quantization: Quantization) -> None:
        """Refuse a role that the model lacks, and a shard larger than the input of a map."""
        super().check(model, quantization)
        for linear in self.targets(model):
            if self.rank > linear.in_features:
                raise DesignError(
                    f"rank <= in_features must hold, but got rank={self.rank} for {linear.path} with in_features="
                    f"{linear.in_features}; lower miss.rank"
                )

    def describe(self) -> str:
        """Say the rank and the roles."""
        return f"MiSS r={self.rank} {self.describe_roles()}"

    def build(self, linear: LinearSummary) -> nn.Module:
        """Return the shared matrix."""
        return SharedShard(linear.out_features, self.rank)


class SharedShard(nn.Module):
    """D^T sum_j x_j, with D (`shard`) [rank, n_out]."""

    def __init__(self, n_out: int, rank: int) -> None:
        super().__init__()
        self.shard = nn.Parameter(torch.zeros(rank, n_out))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return what the matrix adds, in its dtype."""
        rank = len(self.shard)
        padded = functional.pad(hidden.to(self.shard.dtype), (0, -hidden.shape[-1] % rank))
        shards = padded.reshape(*hidden.shape[:-1], -1, rank)
        return functional.linear(shards.sum(dim=-2), self.shard.T)
