"""LoRA: a low-rank update beside chosen linear maps, y = W x + s B A x.

Shapes: A [rank, in_features], B [out_features, rank]; s = alpha / rank, or alpha / sqrt(rank) for
rsLoRA. B starts at zero, so that the step-0 model is the base model.

Source: Hu et al. 2021 (arXiv:2106.09685), eq. 3; rsLoRA: Kalajdzievski 2023 (arXiv:2312.03732);
DoRA: Liu et al. 2024 (arXiv:2402.09353), eq. 5. The layers are peft's.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from autopeft.models.linear_technique import LinearTechnique
from autopeft.spec.block import Quantization, register
from autopeft.spec.model import ModelSummary


@register
class Lora(LinearTechnique):
    """Settings of a LoRA block.

    Attributes:
        rank: Of the update.
        alpha: Numerator of the scaling; twice the rank where it is not given.
        dropout: On the input of A, in training.
        rslora: Scale by alpha / sqrt(rank).
        dora: Learn the norm of each column of W + s B A as well.
    """

    kind: ClassVar[str] = "lora"
    peft_type: ClassVar[str] = "LORA"
    size_field: ClassVar[str | None] = "rank"
    space_fields: ClassVar[frozenset[str]] = frozenset({"alpha_ratio"})
    shared_fields: ClassVar[tuple[str, ...]] = ("dropout", "rslora", "dora")
    # A prior, not a measurement: Hu et al. (appendix D) use 2e-4 to 5e-4 on models of 125 M parameters and
    # more; the small models that searches run on here, with short trainings, want more.
    default_learning_rate: ClassVar[float] = 1e-3

    rank: Annotated[int, Field(ge=1)]
    alpha: float = Field(default_factory=lambda settings: 2.0 * settings.get("rank", 1), gt=0)
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    rslora: bool = False
    dora: bool = False

    @model_validator(mode="before")
    @classmethod
    def _read_alpha_ratio(cls, values: Any) -> Any:
        """Turn `alpha_ratio`, which a space may give, into alpha."""
        if not isinstance(values, Mapping) or "alpha_ratio" not in values:
            return values
        if "alpha" in values:
            raise ValueError("alpha and alpha_ratio exclude each other: give one of them")
        rest = {name: value for name, value in values.items() if name != "alpha_ratio"}
        try:
            return {**rest, "alpha": float(values["alpha_ratio"]) * int(values["rank"])}
        except (KeyError, TypeError, ValueError):
            raise ValueError("alpha_ratio and rank must be numbers") from None

    def check(self, model: ModelSummary, quantization: Quantization) -> None:
        """Refuse a role that the model lacks, and a rank above what a map can have."""
        super().check(model, quantization)
        self.check_rank(self.rank, model)

    def conflicts(self) -> Mapping[str, str]:
        """Return int8 for DoRA."""
        if not self.dora:
            return {}
        return {"int8": "bitsandbytes moves an int8 weight's scales at its first product, and DoRA's norm needs them"}

    def describe(self) -> str:
        """Say the variant, the rank and the roles."""
        name = ("rs" if self.rslora else "") + ("DoRA" if self.dora else "LoRA")
        return f"{name} r={self.rank} {self.describe_roles()}"

    @classmethod
    def peft_settings(cls, targets: Mapping[str, Self], *, conv1d: bool) -> dict[str, Any]:
        """Return the first block's settings, with patterns for the maps that differ."""
        first = next(iter(targets.values()))
        return {
            "r": first.rank,
            "lora_alpha": first.alpha,
            "lora_dropout": first.dropout,
            "use_rslora": first.rslora,
            "use_dora": first.dora,
            "fan_in_fan_out": conv1d,
            "rank_pattern": {path: block.rank for path, block in targets.items() if block.rank != first.rank},
            "alpha_pattern": {path: block.alpha for path, block in targets.items() if block.alpha != first.alpha},
        }
