"""LoHa: an update that is the elementwise product of two low-rank ones, W' = W + s (B1 A1) * (B2 A2).

Shapes: B1, B2 [out_features, rank], A1, A2 [rank, in_features]; s = alpha / rank. The update has rank up to
rank^2. A2 starts at zero, so that the step-0 model is the base model.

Source: Hyeon-Woo et al. 2022 (arXiv:2108.06098), proposition 1 (FedPara), with a scaling as in Yeh et al. 2024
(arXiv:2309.14859). The product and its gradient are peft's.
Omits: peft's layer, which asks the stored weight for the update's shape, so that 4 bits fail, and draws a random number
in every forward.
"""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional

from autopeft.models import peft_gate
from autopeft.models.linear_technique import ScaledTechnique
from autopeft.spec.block import FOUR_BIT, Quantization, register
from autopeft.spec.model import LinearSummary, ModelSummary


@register
class LoHa(ScaledTechnique):
    """Settings of a LoHa block.

    Attributes:
        rank: Of each of the two products.
        alpha: Numerator of the scaling; the rank where it is not given.
    """

    kind: ClassVar[str] = "loha"
    size_is_factor: ClassVar[bool] = True
    peft_type: ClassVar[str] = "LOHA"
    peft_names: ClassVar[Mapping[str, str]] = {
        "b1": "hada_w1_a",
        "a1": "hada_w1_b",
        "b2": "hada_w2_a",
        "a2": "hada_w2_b",
    }
    not_stock_over: ClassVar[tuple[Quantization, ...]] = FOUR_BIT
    # A prior, not a measurement: LoRA's of here. Both products start as small as LoRA's A.
    default_learning_rate: ClassVar[float] = 1e-3

    def check(self, model: ModelSummary, quantization: Quantization) -> None:
        """Refuse a role that the model lacks, and a rank above what a map can have."""
        super().check(model, quantization)
        self.check_rank(self.rank, model)

    def describe(self) -> str:
        """Say the rank and the roles."""
        return f"LoHa r={self.rank} {self.describe_roles()}"

    def build(self, linear: LinearSummary) -> nn.Module:
        """Return the four factors."""
        return HadamardUpdate(linear.in_features, linear.out_features, self.rank, self.alpha / self.rank)


class HadamardUpdate(nn.Module):
    """s ((B1 A1) * (B2 A2)) x."""

    def __init__(self, n_in: int, n_out: int, rank: int, scale: float) -> None:
        super().__init__()
        self.b1 = nn.Parameter(torch.empty(n_out, rank))
        self.a1 = nn.Parameter(torch.empty(rank, n_in))
        self.b2 = nn.Parameter(torch.empty(n_out, rank))
        self.a2 = nn.Parameter(torch.zeros(rank, n_in))
        for factor in (self.b1, self.a1, self.b2):
            nn.init.kaiming_uniform_(factor, a=math.sqrt(5))
        self.scale = scale

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return what the update adds, in the dtype of the factors."""
        update = peft_gate.hadamard_update((self.b1, self.a1, self.b2, self.a2), self.scale)
        return functional.linear(hidden.to(self.a1.dtype), update)
