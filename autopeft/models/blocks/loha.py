"""LoHa: an update that is the elementwise product of two low-rank ones, W' = W + s (B1 A1) * (B2 A2).

Shapes: B1, B2 [out_features, rank], A1, A2 [rank, in_features]; s = alpha / rank. The update has rank up to
rank^2. A2 starts at zero, so that the step-0 model is the base model.

Source: Hyeon-Woo et al. 2022 (arXiv:2108.06098), proposition 1, with a scaling as in Yeh et al. 2024
(arXiv:2309.14859), section 3.2. The layers are peft's.
"""

from collections.abc import Mapping
from typing import ClassVar

from autopeft.models.linear_technique import ScaledTechnique
from autopeft.spec.block import FOUR_BIT, Quantization, register
from autopeft.spec.model import ModelSummary


@register
class LoHa(ScaledTechnique):
    """Settings of a LoHa block.

    Attributes:
        rank: Of each of the two factors.
        alpha: Numerator of the scaling; the rank where it is not given.
    """

    kind: ClassVar[str] = "loha"
    peft_type: ClassVar[str] = "LOHA"
    takes_transposed: ClassVar[bool] = False
    # A prior, not a measurement: LoRA's of here. Yeh et al. train LoRA, LoHa and LoKr at the same rates.
    default_learning_rate: ClassVar[float] = 1e-3

    def check(self, model: ModelSummary, quantization: Quantization) -> None:
        """Refuse a role that the model lacks, and a rank above what a map can have."""
        super().check(model, quantization)
        self.check_rank(self.rank, model)

    def conflicts(self) -> Mapping[str, str]:
        """Return the 4-bit storages."""
        return dict.fromkeys(FOUR_BIT, "peft's LoHa shapes its update like the stored weight, which 4 bits pack")

    def describe(self) -> str:
        """Say the rank and the roles."""
        return f"LoHa r={self.rank} {self.describe_roles()}"
