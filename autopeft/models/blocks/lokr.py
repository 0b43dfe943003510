"""LoKr: an update that is a Kronecker product, W' = W + s C (x) (B A).

With out_features = o1 o2 and in_features = i1 i2, C is [o1, i1], B [o2, rank], A [rank, i2]; s = alpha / rank. Where
the rank is not below half of max(o2, i2), the right factor is a full [o2, i2] matrix, as in KronA. C starts at
zero, so that the step-0 model is the base model. The product is never made: y = (C (x) R) x is C X R^T, with X the
input as an [i1, i2] matrix.

Source: Edalati et al. 2022 (arXiv:2212.10650), section 3 (KronA); Yeh et al. 2024 (arXiv:2309.14859), section 3
(LoKr). Sizes and starting values are peft's.
Omits: peft's layer, which asks the stored weight for the update's shape, so that 4 bits fail, and draws a random number
in every forward.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from pydantic import field_validator
from torch import nn
from torch.nn import functional

from autopeft.errors import DesignError
from autopeft.models import peft_gate
from autopeft.models.linear_technique import ScaledTechnique
from autopeft.spec.block import FOUR_BIT, Quantization, register
from autopeft.spec.model import LinearSummary, ModelSummary

Shape = tuple[int, int]


@register
class LoKr(ScaledTechnique):
    """Settings of a LoKr block.

    Attributes:
        rank: Of the right factor, where it is decomposed.
        alpha: Numerator of the scaling; the rank where it is not given.
        factor: o1 and i1; -1 takes the divisors nearest to the square roots.
        decompose_both: Make C a product of the same rank too, where the rank is below half of max(o1, i1).
    """

    kind: ClassVar[str] = "lokr"
    peft_type: ClassVar[str] = "LOKR"
    peft_names: ClassVar[Mapping[str, str]] = {
        "left": "lokr_w1",
        "left_b": "lokr_w1_a",
        "left_a": "lokr_w1_b",
        "right": "lokr_w2",
        "right_b": "lokr_w2_a",
        "right_a": "lokr_w2_b",
    }
    not_stock_over: ClassVar[tuple[Quantization, ...]] = FOUR_BIT
    stock_fields: ClassVar[tuple[str, ...]] = ("factor", "decompose_both")
    # A prior, not a measurement: LoRA's of here.
    default_learning_rate: ClassVar[float] = 1e-3

    factor: int = -1
    decompose_both: bool = False

    @field_validator("factor")
    @classmethod
    def _check_factor(cls, factor: int) -> int:
        if factor != -1 and factor < 2:
            raise ValueError("must be -1, for the divisors nearest to the square roots, or at least 2")
        return factor

    def check(self, model: ModelSummary, quantization: Quantization) -> None:
        """Refuse a factor that does not divide, a rank above the right factor's, and an idle `decompose_both`."""
        super().check(model, quantization)
        for linear in self.targets(model):
            if self.factor != -1 and (linear.in_features % self.factor or linear.out_features % self.factor):
                raise DesignError(
                    f"factor must divide in_features and out_features, but got factor={self.factor} for {linear.path} "
                    f"of {linear.in_features} x {linear.out_features}; change lokr.factor"
                )
            _, right = self.factor_shapes(linear)
            if self.rank > max(right):
                raise DesignError(
                    f"rank <= max(o2, i2) must hold, but got rank={self.rank} for {linear.path}, whose right factor is "
                    f"{right[0]} x {right[1]}; lower lokr.rank or lokr.factor"
                )
        sides = [max(self.factor_shapes(linear)[0]) for linear in self.targets(model)]
        if self.decompose_both and sides and not any(_is_decomposed(self.rank, side) for side in sides):
            raise DesignError(
                f"decompose_both needs rank < max(o1, i1) / 2 for some map, but got rank={self.rank}, and the largest "
                f"left factor has a side of {max(sides)}; lower lokr.rank or leave lokr.decompose_both out"
            )

    def factor_shapes(self, linear: LinearSummary) -> tuple[Shape, Shape]:
        """Return the shapes of the left and of the right factor, [out, in] each."""
        o1, o2 = peft_gate.kronecker_sizes(linear.out_features, self.factor)
        i1, i2 = peft_gate.kronecker_sizes(linear.in_features, self.factor)
        return (o1, i1), (o2, i2)

    def describe(self) -> str:
        """Say the rank, what differs from the plain form, and the roles."""
        factor = "" if self.factor == -1 else f" factor {self.factor}"
        both = " both decomposed" if self.decompose_both else ""
        return f"LoKr r={self.rank}{factor}{both} {self.describe_roles()}"

    def build(self, linear: LinearSummary) -> nn.Module:
        """Return the two factors."""
        left, right = self.factor_shapes(linear)
        return KroneckerUpdate(left, right, self)

    @classmethod
    def peft_settings(cls, targets: Mapping[str, Self], *, conv1d: bool) -> dict[str, Any]:
        """Return the ranks and the factor."""
        first = next(iter(targets.values()))
        return {
            **super().peft_settings(targets, conv1d=conv1d),
            "decompose_factor": first.factor,
            "decompose_both": first.decompose_both,
        }


def _is_decomposed(rank: int, side: int) -> bool:
    """Return whether a product of the rank stands for a factor whose longer side is `side`, as peft decides it."""
    return 2 * rank < side


class KroneckerUpdate(nn.Module):
    """s (left (x) right) x; each factor is one matrix [out, in], or `_b` [out, rank] times `_a` [rank, in]."""

    def __init__(self, left: Shape, right: Shape, settings: LoKr) -> None:
        super().__init__()
        self.scale = settings.alpha / settings.rank
        self.sizes = (left[1], right[1])
        self._add("left", left, settings.rank if settings.decompose_both else None, zero=True)
        self._add("right", right, settings.rank, zero=False)

    def _add(self, name: str, shape: Shape, rank: int | None, *, zero: bool) -> None:
        shapes = {name: shape}
        if rank is not None and _is_decomposed(rank, max(shape)):
            shapes = {f"{name}_b": (shape[0], rank), f"{name}_a": (rank, shape[1])}
        for number, (part, size) in enumerate(shapes.items()):
            matrix = nn.Parameter(torch.zeros(size))
            if number == 1 or not zero:  # one zero matrix is enough
                nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))
            self.register_parameter(part, matrix)

    def _factor(self, name: str) -> torch.Tensor:
        whole = self._parameters.get(name)
        return self.get_parameter(f"{name}_b") @ self.get_parameter(f"{name}_a") if whole is None else whole

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return what the update adds, in the dtype of the factors."""
        left, right = self._factor("left"), self._factor("right")
        blocks = hidden.to(next(self.parameters()).dtype).reshape(*hidden.shape[:-1], *self.sizes)
        update: torch.Tensor = left @ functional.linear(blocks, right)
        return self.scale * update.flatten(-2)
