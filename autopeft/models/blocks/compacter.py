"""Compacter: bottleneck adapters whose weights are sums of Kronecker products with shared left factors.

Each linear map of an adapter, k numbers in and d out, has

    W = sum over i = 1 … n of A_i (x) (s_i t_i),    A_i [n, n],  s_i [k/n, rank],  t_i [rank, d/n],    y = x W + b

The A_i are one set for all maps of all layers; s_i, t_i and b are a map's own. The t_i and b of the second map
start at zero, so that the step-0 model is the base model.

Source: Karimi Mahabadi et al. 2021 (arXiv:2106.04647), section 3.
Omits: the training of the model's layer norms beside it, which the paper's experiments add: a block `norms` does so.
"""

from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from autopeft.errors import DesignError
from autopeft.models.bottleneck_technique import BottleneckTechnique, Places
from autopeft.models.roles import stack_path
from autopeft.models.technique import Site
from autopeft.spec.block import Quantization, register
from autopeft.spec.model import ModelSummary

_STD = 0.02
"""Of the first map's W at the start, as in other adapters."""


@register
class Compacter(BottleneckTechnique):
    """Settings of Compacter's adapters.

    Attributes:
        n: Kronecker products in a sum; divides the size and the widths of the sublayers.
        rank: Of the right factor of each product.
    """

    kind: ClassVar[str] = "compacter"
    # A prior, not a measurement: that of the paper's experiments.
    default_learning_rate: ClassVar[float] = 3e-3

    at: Places = ("attention", "mlp")
    activation: Literal["relu", "gelu"] = "gelu"
    n: Annotated[int, Field(ge=1)] = 4
    rank: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        if self.size % self.n:
            raise ValueError(
                f"n must divide size: with n={self.n} take a multiple of {self.n} for size, such as "
                f"{self.n * (self.size // self.n + 1)}"
            )
        return self

    def check(self, model: ModelSummary, quantization: Quantization) -> None:
        """Refuse a number of terms that does not divide a width, and a rank that makes nothing smaller."""
        super().check(model, quantization)
        for layer, place in self.sublayers(model):
            for width in self.widths(model.layers[layer], place):
                if width % self.n:
                    raise DesignError(
                        f"n must divide the widths of the sublayers, but got n={self.n}, width={width} at {place} of "
                        f"layer {layer}; change compacter.n"
                    )
        if self.rank > self.size // self.n:
            raise DesignError(
                f"rank <= size / n must hold, but got rank={self.rank}, size={self.size}, n={self.n}; "
                "lower compacter.rank"
            )

    def describe(self) -> str:
        """Say the size, the terms and the places."""
        variants = [f"n={self.n}"] + ([] if self.rank == 1 else [f"rank {self.rank}"]) + self.describe_variants()
        return f"Compacter {self.size} ({', '.join(variants)}) {self.describe_places()}"

    def make_maps(self, site: Site, n_in: int, n_out: int) -> tuple[nn.Module, nn.Module]:
        """Return two maps on the model's one set of left factors."""
        factors = _left_factors(site, self.n)
        down, up = (
            KroneckerLinear(factors, n_in, self.size, self.rank),
            KroneckerLinear(factors, self.size, n_out, self.rank),
        )
        nn.init.zeros_(up.right)
        return down, up


def _left_factors(site: Site, n: int) -> "LeftFactors":
    """Return the left factors for n terms, which the first map that asks adds beside the stack of layers."""
    parent = stack_path(site.summary.layers[0])
    name = f"autopeft_compacter_{n}"
    known = getattr(site.module(parent), name, None)
    if not isinstance(known, LeftFactors):
        known = LeftFactors(n)
        site.add(parent, name, known)
    return known


class LeftFactors(nn.Module):
    """The A_i, [n, n, n]: the terms first."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n, n, n) / n**0.5)  # a sum of n terms keeps the right factors' scale


class KroneckerLinear(nn.Module):
    """x W + b with W = sum_i A_i (x) (s_i t_i): maps [..., k] to [..., d] without ever making W.

    With x read as [n, k/n], element (q, b) of y is the sum over i, p, a and r of x[p, a] s[i, a, r] A[i, p, q]
    t[i, r, b]: three small products instead of one of k x d.
    """

    def __init__(self, factors: LeftFactors, n_in: int, n_out: int, rank: int) -> None:
        super().__init__()
        n = len(factors.weight)
        self._factors = (factors,)  # in a tuple: their owner is another module, which trains and saves them once
        self.left = nn.Parameter(torch.randn(n, n_in // n, rank))
        self.right = nn.Parameter(torch.randn(n, rank, n_out // n) * _STD / rank**0.5)
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map [..., k] to [..., d]."""
        n, n_rows, rank = self.left.shape
        mixing = self._factors[0].weight.to(hidden.device)  # layers may be spread over devices
        inner = hidden.view(*hidden.shape[:-1], n, n_rows) @ self.left.transpose(0, 1).flatten(1)  # [..., p, (i, r)]
        inner = inner.view(*inner.shape[:-1], n, rank)
        mixed = torch.einsum("...pir,ipq->...qir", inner, mixing).flatten(-2)
        return (mixed @ self.right.flatten(0, 1)).flatten(-2) + self.bias
