"""LoRA: a low-rank update beside chosen linear maps, y = W x + s B A x.

Shapes: A [rank, in_features], B [out_features, rank]; s = alpha / rank, or alpha / sqrt(rank) for
rsLoRA. B starts at zero, so that the step-0 model is the base model.

Source: Hu et al. 2021 (arXiv:2106.09685), eq. 3; rsLoRA: Kalajdzievski 2023 (arXiv:2312.03732);
DoRA: Liu et al. 2024 (arXiv:2402.09353), eq. 5. The layers are peft's.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, model_validator

from autopeft.errors import DesignError
from autopeft.models import peft_gate
from autopeft.models.technique import Site, Technique
from autopeft.spec.block import Block, Quantization, Roles, first_shared, register
from autopeft.spec.messages import nearest
from autopeft.spec.model import ROLES, LinearSummary, ModelSummary

PEFT_TYPE = "LORA"


@register
class Lora(Technique):
    """Settings of a LoRA block.

    Attributes:
        alpha: Numerator of the scaling; twice the rank where it is not given.
        dropout: On the input of A, in training.
        roles: The linear maps that get an update in each layer.
        rslora: Scale by alpha / sqrt(rank).
        dora: Learn the norm of each column of W + s B A as well.
    """

    kind: ClassVar[str] = "lora"
    size_field: ClassVar[str | None] = "rank"
    space_fields: ClassVar[frozenset[str]] = frozenset({"alpha_ratio"})
    # A prior, not a measurement: Hu et al. (appendix D) use 2e-4 to 5e-4 on models of 125 M parameters and
    # more; the small models that searches run on here, with short trainings, want more.
    default_learning_rate: ClassVar[float] = 1e-3
    mergeable: ClassVar[bool] = True
    stage: ClassVar[int] = 0

    rank: Annotated[int, Field(ge=1)]
    alpha: float = Field(default_factory=lambda settings: 2.0 * settings.get("rank", 1), gt=0)
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    roles: Roles = "all"
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
        if self.roles != "all":
            for role in self.roles:
                if role not in model.roles:
                    raise DesignError(
                        f"lora.roles must be roles of the model ({', '.join(model.roles)}), but got {role!r}"
                        f"{nearest(role, model.roles)}"
                    )
        if self.rank > model.hidden_size:
            raise DesignError(
                f"rank <= hidden_size must hold, but got rank={self.rank}, hidden_size={model.hidden_size}; "
                "lower lora.rank"
            )
        for linear in self._targets(model):
            if self.rank > min(linear.in_features, linear.out_features):
                raise DesignError(
                    f"rank <= min(in_features, out_features) must hold, but got rank={self.rank} for {linear.path} of "
                    f"{linear.in_features} x {linear.out_features}; lower lora.rank"
                )

    def conflicts(self) -> Mapping[str, str]:
        """Return int8 for DoRA."""
        if not self.dora:
            return {}
        return {"int8": "bitsandbytes moves an int8 weight's scales at its first product, and DoRA's norm needs them"}

    @classmethod
    def check_together(cls, blocks: Sequence[Block], model: ModelSummary) -> None:
        """Refuse blocks that share a linear map, or that peft cannot keep in one configuration."""
        loras = [block for block in blocks if isinstance(block, Lora)]
        path = first_shared((linear.path for linear in block._targets(model)) for block in loras)
        if path is not None:
            raise DesignError(f"a linear map can have one lora, but two blocks want {path}; make them disjoint")
        for field in ("dropout", "rslora", "dora"):
            values = sorted({getattr(block, field) for block in blocks})
            if len(values) > 1:
                raise DesignError(
                    f"lora blocks of one design must have the same {field}, because peft keeps one {field} for all of "
                    f"an adapter's layers, but got {' and '.join(map(str, values))}"
                )

    def resolve(self, model: ModelSummary) -> Block:
        """Write every layer and every role of the model as `all`."""
        resolved = super().resolve(model)
        assert isinstance(resolved, Lora)
        return resolved._collapse("roles", model.roles)

    def exports_to_peft(self, model: ModelSummary) -> bool:
        """Return True: peft has rank, alpha and targets for each map."""
        return True

    def describe(self) -> str:
        """Say the variant, the rank and the roles."""
        name = ("rs" if self.rslora else "") + ("DoRA" if self.dora else "LoRA")
        return f"{name} r={self.rank} on {'all roles' if self.roles == 'all' else ', '.join(self.roles)}"

    @classmethod
    def attach_all(cls, blocks: Sequence["Lora"], site: Site) -> None:
        """Inject all blocks as one peft adapter."""
        targets = {linear.path: block for block in blocks for linear in block._targets(site.summary)}
        conv1d = any(type(site.module(path)).__name__ == "Conv1D" for path in targets)
        peft_gate.inject(site, PEFT_TYPE, list(targets), {**_settings(targets), "fan_in_fan_out": conv1d})

    @classmethod
    def to_peft(cls, blocks: Sequence["Lora"], site: Site) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:  # noqa: ARG003
        """Return what was injected, as peft would save it."""
        return peft_gate.extract(site)

    def _targets(self, model: ModelSummary) -> Iterator[LinearSummary]:
        """Yield the linear maps that the block updates."""
        wanted = ROLES if self.roles == "all" else self.roles
        for index in self.layer_indices(model):
            roles = model.layers[index].roles
            yield from (roles[role] for role in wanted if role in roles)


def _settings(targets: Mapping[str, Lora]) -> dict[str, Any]:
    """Return peft's settings: the first block's, with patterns for the maps that differ."""
    first = next(iter(targets.values()))
    return {
        "r": first.rank,
        "lora_alpha": first.alpha,
        "lora_dropout": first.dropout,
        "use_rslora": first.rslora,
        "use_dora": first.dora,
        "rank_pattern": {path: block.rank for path, block in targets.items() if block.rank != first.rank},
        "alpha_pattern": {path: block.alpha for path, block in targets.items() if block.alpha != first.alpha},
    }
