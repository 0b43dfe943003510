"""SHiRA: a sparse update of high rank, W' = W + S with a fixed random mask.

S has rank (in_features + out_features) nonzero numbers for each map, as many as LoRA of that rank trains; where they
are is drawn once from the seed that the design is attached with, and saved with it. They start at zero, so that
the step-0 model is the base model.

Source: Bhardwaj et al. 2024 (arXiv:2406.13175), section 3, the random mask (SHiRA-Rand).
Omits: masks by structure, weight magnitude or gradient. peft's layer is not used: it refuses a map that has another
layer, computes with the base's weight and so past its hooks, and copies that weight in every forward. Its format is.
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
class Shira(UnscaledTechnique):
    """Settings of a SHiRA block.

    Attributes:
        rank: Of the LoRA that would train as many numbers; the rank of the update itself is not limited.
    """

    kind: ClassVar[str] = "shira"
    size_is_factor: ClassVar[bool] = True
    peft_type: ClassVar[str] = "SHIRA"
    peft_names: ClassVar[Mapping[str, str]] = {"values": "shira_weight", "indices": "shira_indices"}
    # There peft's layer multiplies by the dequantized weight, where an int8 product quantizes its input too.
    not_stock_over: ClassVar[tuple[Quantization, ...]] = ("int8",)
    # A prior, not a measurement: LoRA's of here; each number is a weight of its own, as in full fine-tuning.
    default_learning_rate: ClassVar[float] = 1e-3

    def check(self, model: ModelSummary, quantization: Quantization) -> None:
        """Refuse a role that the model lacks, and more numbers than a map has weights."""
        super().check(model, quantization)
        for linear in self.targets(model):
            n_in, n_out = linear.in_features, linear.out_features
            if self.rank * (n_in + n_out) > n_in * n_out:
                raise DesignError(
                    f"rank * (in_features + out_features) <= in_features * out_features must hold, but got rank="
                    f"{self.rank} for {linear.path} of {n_in} x {n_out}; lower shira.rank"
                )

    def describe(self) -> str:
        """Say the rank and the roles."""
        return f"SHiRA r={self.rank} {self.describe_roles()}"

    def build(self, linear: LinearSummary) -> nn.Module:
        """Return a sparse update with a mask of its own."""
        return SparseUpdate(linear.in_features, linear.out_features, self.rank)


class SparseUpdate(nn.Module):
    """S x, with S [n_out, n_in] of rank (n_in + n_out) nonzero `values` at `indices` [2, n]: rows, then columns."""

    indices: torch.Tensor

    def __init__(self, n_in: int, n_out: int, rank: int) -> None:
        super().__init__()
        self.shape = (n_out, n_in)
        n = rank * (n_in + n_out)
        flat = torch.randperm(n_out * n_in)[:n]
        self.values = nn.Parameter(torch.zeros(n))
        self.register_buffer("indices", torch.stack([flat // n_in, flat % n_in]).int())

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return what the update adds, in the dtype of the values."""
        rows, columns = self.indices
        update = self.values.new_zeros(self.shape).index_put((rows, columns), self.values)
        return functional.linear(hidden.to(self.values.dtype), update)
