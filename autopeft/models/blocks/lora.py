"""LoRA: a low-rank update beside chosen linear maps, y = W x + s B A x.

Shapes: A [rank, in_features], B [out_features, rank]; s = alpha / rank, or alpha / sqrt(rank) for
rsLoRA. B starts at zero, so that the step-0 model is the base model.

Variants, which may be combined where nothing is said:

    LoRA-FA  A keeps its random values and only B trains
    LoRA+    B learns at a multiple of A's rate; needs an A that trains
    DoRA     the norm of each column of W + s B A is learned as well
    gated    y = W x + g s B A x, g in (0, 1) learned from the map's own input (`autopeft.models.gate`); not with DoRA

Source: Hu et al. 2021 (arXiv:2106.09685), eq. 3; rsLoRA: Kalajdzievski 2023 (arXiv:2312.03732);
DoRA: Liu et al. 2024 (arXiv:2402.09353), eq. 5; LoRA-FA: Zhang et al. 2023 (arXiv:2308.03303), section 3;
LoRA+: Hayou et al. 2024 (arXiv:2402.12354), section 4; the gate: Mao et al. 2022 (arXiv:2110.07577), section 3.2,
one for each map, as in the authors' code, where it stands in the place of s: alpha = rank makes it so here. The layers
are peft's.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import Field
from torch import nn

from autopeft.errors import DesignError
from autopeft.models.gate import Gate, gate_maker
from autopeft.models.linear_technique import AlphaTechnique
from autopeft.models.peft_gate import ADAPTER_NAME
from autopeft.models.technique import Site
from autopeft.spec.block import Quantization, register
from autopeft.spec.model import ModelSummary


@register
class Lora(AlphaTechnique):
    """Settings of a LoRA block.

    Attributes:
        alpha: Numerator of the scaling; twice the rank where it is not given.
        dropout: On the input of A, in training.
        rslora: Scale by alpha / sqrt(rank).
        dora: Learn the norm of each column of W + s B A as well.
        freeze_a: Train B alone (LoRA-FA).
        b_rate_ratio: Learning rate of B over that of A (LoRA+, whose authors advise 16).
        gate: Scale the update by a learned gate (UniPELT).
    """

    kind: ClassVar[str] = "lora"
    size_is_factor: ClassVar[bool] = True
    peft_type: ClassVar[str] = "LORA"
    shared_fields: ClassVar[tuple[str, ...]] = ("dropout", "rslora", "dora")
    # A prior, not a measurement: Hu et al. (appendix D) use 2e-4 to 5e-4 on models of 125 M parameters and
    # more; the small models that searches run on here, with short trainings, want more.
    default_learning_rate: ClassVar[float] = 1e-3

    alpha: float = Field(default_factory=lambda settings: 2.0 * settings.get("rank", 1), gt=0)
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    rslora: bool = False
    dora: bool = False
    freeze_a: bool = False
    b_rate_ratio: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    gate: bool = False

    def check(self, model: ModelSummary, quantization: Quantization) -> None:
        """Refuse variants that exclude each other, a role that the model lacks, and a rank above what maps can have."""
        super().check(model, quantization)
        if self.freeze_a and self.b_rate_ratio != 1:
            raise DesignError(
                f"b_rate_ratio is relative to A's rate, but A is frozen, and got b_rate_ratio={self.b_rate_ratio:g}; "
                "leave out lora.b_rate_ratio or lora.freeze_a"
            )
        if self.gate and self.dora:
            raise DesignError(
                "a gate scales what is added to a map, but DoRA changes the map's norm too; leave out lora.gate or "
                "lora.dora"
            )
        self.check_rank(self.rank, model)

    @property
    def mergeable(self) -> bool:
        """Return whether there is no gate: a gate depends on the input."""
        return not self.gate

    def exports_to_peft(self, model: ModelSummary) -> bool:
        """Return whether there is no gate, which peft does not know, and no map that it takes for an expert."""
        names = (linear.path.rpartition(".")[2] for linear in self.targets(model))
        return not self.gate and not any(name in model.expert_names for name in names)

    def conflicts(self) -> Mapping[str, str]:
        """Return int8 for DoRA."""
        if not self.dora:
            return {}
        return {"int8": "bitsandbytes moves an int8 weight's scales at its first product, and DoRA's norm needs them"}

    def describe(self) -> str:
        """Say the variant, the rank and the roles."""
        name = ("rs" if self.rslora else "") + ("DoRA" if self.dora else "LoRA") + ("-FA" if self.freeze_a else "")
        plus = "" if self.b_rate_ratio == 1 else f"+ (B at {self.b_rate_ratio:g}x)"
        return f"{'gated ' if self.gate else ''}{name}{plus} r={self.rank} {self.describe_roles()}"

    @classmethod
    def attach_all(cls, blocks: Sequence[Self], site: Site) -> None:
        """Inject all blocks as one peft adapter; then freeze, set rates and add gates."""
        super().attach_all(blocks, site)
        for block in blocks:
            for linear in block.targets(site.summary):
                wrapper: Any = site.module(linear.path)
                if block.freeze_a:
                    site.freeze(wrapper.lora_A[ADAPTER_NAME].weight)
                if block.b_rate_ratio != 1:
                    site.rate_factors[wrapper.lora_B[ADAPTER_NAME].weight] = block.b_rate_ratio
        gated = {linear.path for block in blocks if block.gate for linear in block.targets(site.summary)}
        if gated:
            make_gate = gate_maker(site)
            for index, layer in enumerate(site.summary.layers):
                for linear in layer.roles.values():
                    if linear.path in gated:
                        _add_gate(site, linear.path, make_gate(index, linear.in_features))

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


def _add_gate(site: Site, path: str, gate: Gate) -> None:
    """Put a gate into the peft layer at a path."""
    wrapper: Any = site.module(path)
    site.add(path, "gate", gate)
    update = _GatedUpdate(gate)
    site.hook(wrapper.lora_dropout[ADAPTER_NAME], update.read)
    site.hook(wrapper.lora_A[ADAPTER_NAME], update.scale)


class _GatedUpdate:
    """Carries a gate's value from where the input is to where the update is narrow: A's output, which B maps on."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._value: torch.Tensor | None = None

    def read(self, dropout: nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> None:
        """Compute the gate from what comes before the dropout."""
        self._value = self._gate(args[0])

    def scale(self, a: nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        """Scale A x, and so B A x."""
        assert self._value is not None
        value, self._value = self._value, None
        return output * value.to(output.dtype)
