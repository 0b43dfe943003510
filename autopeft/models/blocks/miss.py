"""MiSS: one small matrix, shared by all shards of a linear map's input, y = W x + D^T sum_j x_j.

With x cut into shards x_j of `rank` features (the last one padded with zeros), D is [rank, out_features]; so
the update repeats D^T along the input. D starts at zero, so that the step-0 model is the base model.

Source: Kang & Yin 2024 (arXiv:2409.15371), section 3, the efficient form. The layers are peft's.
Omits: `bat`, whose peft layer takes the base's weight past whatever else is on the map, and `mini`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field

from autopeft.errors import DesignError
from autopeft.models.linear_technique import LinearTechnique
from autopeft.spec.block import Quantization, register
from autopeft.spec.model import ModelSummary


@register
class MiSS(LinearTechnique):
    """Settings of a MiSS block.

    Attributes:
        rank: Features of a shard.
    """

    kind: ClassVar[str] = "miss"
    peft_type: ClassVar[str] = "MISS"
    size_field: ClassVar[str | None] = "rank"
    shared_fields: ClassVar[tuple[str, ...]] = ("rank",)
    takes_transposed: ClassVar[bool] = False
    # A prior, not a measurement: LoRA's of here. A step on D moves in_features / rank columns of the weight at once.
    default_learning_rate: ClassVar[float] = 1e-3

    rank: Annotated[int, Field(ge=1)]

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

    @classmethod
    def peft_settings(cls, targets: Mapping[str, Self], *, conv1d: bool) -> dict[str, Any]:  # noqa: ARG003
        """Return the rank."""
        return {"r": next(iter(targets.values())).rank}
