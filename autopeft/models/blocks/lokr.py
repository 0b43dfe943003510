"""LoKr: an update that is a Kronecker product, W' = W + s C (x) (B A).

With out_features = o1 o2 and in_features = i1 i2, C is [o1, i1], B [o2, rank], A [rank, i2]; s = alpha / rank. Where
the rank is not below half of max(o2, i2), the right factor is a full [o2, i2] matrix, as in KronA. C starts at
zero, so that the step-0 model is the base model.

Source: Edalati et al. 2022 (arXiv:2212.10650), eq. 2 (KronA); Yeh et al. 2024 (arXiv:2309.14859), section 3.2. The
layers are peft's.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import field_validator

from autopeft.errors import DesignError
from autopeft.models import peft_gate
from autopeft.models.linear_technique import ScaledTechnique
from autopeft.spec.block import FOUR_BIT, Quantization, register
from autopeft.spec.model import LinearSummary, ModelSummary


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
    takes_transposed: ClassVar[bool] = False
    shared_fields: ClassVar[tuple[str, ...]] = ("factor", "decompose_both")
    # A prior, not a measurement: LoRA's of here. Yeh et al. train LoRA, LoHa and LoKr at the same rates.
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
        """Refuse a factor that does not divide, a rank above what the factors can have, and an idle `decompose_both`."""
        super().check(model, quantization)
        shapes = {linear.path: self.factor_shapes(linear) for linear in self.targets(model)}
        for linear in self.targets(model):
            if self.factor != -1 and (linear.in_features % self.factor or linear.out_features % self.factor):
                raise DesignError(
                    f"factor must divide in_features and out_features, but got factor={self.factor} for {linear.path} "
                    f"of {linear.in_features} x {linear.out_features}; change lokr.factor"
                )
            _, right = shapes[linear.path]
            if self.rank > max(right):
                raise DesignError(
                    f"rank <= max(o2, i2) must hold, but got rank={self.rank} for {linear.path}, whose right factor is "
                    f"{right[0]} x {right[1]}; lower lokr.rank or lokr.factor"
                )
        largest = max((max(left) for left, _ in shapes.values()), default=0)
        if self.decompose_both and shapes and 2 * self.rank >= largest:
            raise DesignError(
                f"decompose_both needs rank < max(o1, i1) / 2 in some map, but got rank={self.rank}, and the largest "
                f"side of a left factor is {largest}; lower lokr.rank or leave lokr.decompose_both out"
            )

    def factor_shapes(self, linear: LinearSummary) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the shapes of C and of the right factor, [out, in]."""
        o1, o2 = peft_gate.kronecker_sizes(linear.out_features, self.factor)
        i1, i2 = peft_gate.kronecker_sizes(linear.in_features, self.factor)
        return (o1, i1), (o2, i2)

    def conflicts(self) -> Mapping[str, str]:
        """Return the 4-bit storages."""
        return dict.fromkeys(FOUR_BIT, "peft's LoKr shapes its update like the stored weight, which 4 bits pack")

    def describe(self) -> str:
        """Say the rank, what differs from the plain form, and the roles."""
        factor = "" if self.factor == -1 else f" factor {self.factor}"
        both = " both decomposed" if self.decompose_both else ""
        return f"LoKr r={self.rank}{factor}{both} {self.describe_roles()}"

    @classmethod
    def peft_settings(cls, targets: Mapping[str, Self], *, conv1d: bool) -> dict[str, Any]:
        """Return the ranks and the factor."""
        first = next(iter(targets.values()))
        return {
            **super().peft_settings(targets, conv1d=conv1d),
            "decompose_factor": first.factor,
            "decompose_both": first.decompose_both,
        }
