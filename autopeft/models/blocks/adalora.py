"""AdaLoRA: updates in the form of a singular value decomposition, whose ranks training itself allots to the maps.

For each map y = W x + s P (E * (Q x)) with s = alpha / initial_rank. Shapes, by peft's names: `lora_B` is P [out, r],
`lora_E` the singular values [r, 1], `lora_A` is Q [r, in], with r = initial_rank. E starts at zero, so that the step-0
model is the base model. After a step, the triplets (a column of P, its value, a row of Q) with the lowest importance
lose their value, so that as many are left over all maps as the budget says. The budget falls from initial_rank to rank
for each map on average:

    u = (progress - warmup) / (1 - warmup - final), clipped to [0, 1];   budget = target + (initial - target) (1 - u)^3

In the final part of the training the choice stays. With g the gradient of a weight w, its importance is I * U:

    I <- 0.85 I + 0.15 |w g|        sensitivity
    U <- 0.85 U + 0.15 ||w g| - I|  uncertainty

and a triplet's is that of its value plus the means over its column and over its row. The loss gets in addition, summed
over all maps, orthogonality * (||P^T P - 1||^2 + ||Q Q^T - 1||^2), squared Frobenius norms.

Source: Zhang et al. 2023 (arXiv:2303.10512), eq. 3 to 5 and 7 to 11, and algorithm 1. As in the authors' code, w is
read after the optimizer's step, and 1 - u takes the place of the paper's eq. 12, which would exceed the initial budget
just after the warm-up. The penalty is the paper's sum of squares; peft and the authors' code average unsquared norms.
Omits: giving the memory of pruned triplets back while training goes on. An export for stock PEFT leaves them out.
The layers are peft's; its allocator is not used, because it forgets what it has averaged where a training is cut.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import Field

from autopeft.errors import DesignError
from autopeft.models.linear_technique import RankTechnique
from autopeft.models.peft_gate import ADAPTER_NAME
from autopeft.models.technique import Site, StepPosition
from autopeft.spec.block import Block, Quantization, register
from autopeft.spec.model import ModelSummary

SMOOTHING = 0.85
"""Of both averages; the authors use no other value."""
_MASK = "mask"


@register
class AdaLora(RankTechnique):
    """Settings of AdaLoRA; blocks of one design share one budget and may differ in their maps alone.

    Attributes:
        rank: What is left for each map on average.
        initial_rank: What each map starts with and trains; 1.5 times the rank where it is not given.
        alpha: Numerator of the scaling; twice the initial rank where it is not given.
        dropout: On the input of Q, in training.
        warmup: Part of the training before the budget falls.
        final: Part of the training after it has fallen.
        interval: Steps from one choice of triplets to the next.
        orthogonality: Weight of the penalty.
    """

    kind: ClassVar[str] = "adalora"
    peft_type: ClassVar[str] = "ADALORA"
    stage: ClassVar[int] = 1  # around LoRA: peft's cannot wrap AdaLoRA's layer of an int8 map
    shared_fields: ClassVar[tuple[str, ...]] = (
        "rank",
        "initial_rank",
        "alpha",
        "dropout",
        "warmup",
        "final",
        "interval",
        "orthogonality",
    )
    # A prior, not a measurement: Zhang et al. (appendix E) use 5e-4 to 2.2e-3 for DeBERTa of 184 M parameters.
    default_learning_rate: ClassVar[float] = 2e-3

    initial_rank: int = Field(default_factory=lambda settings: math.ceil(1.5 * settings.get("rank", 1)), ge=1)
    alpha: float = Field(default_factory=lambda settings: 2.0 * settings.get("initial_rank", 1), gt=0)
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    final: Annotated[float, Field(ge=0, lt=1)] = 0.5
    interval: Annotated[int, Field(ge=1)] = 10
    orthogonality: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1

    def check(self, model: ModelSummary, quantization: Quantization) -> None:
        """Refuse a budget that would rise, a training without a part in which it falls, and a rank too large."""
        super().check(model, quantization)
        if self.initial_rank < self.rank:
            raise DesignError(
                f"rank <= initial_rank must hold, but got rank={self.rank}, initial_rank={self.initial_rank}; "
                "leave out adalora.initial_rank: it is 1.5 times the rank then"
            )
        if self.warmup + self.final >= 1:
            raise DesignError(
                f"warmup + final < 1 must hold, but got warmup={self.warmup:g}, final={self.final:g}, which leaves the "
                "budget no time to fall; lower adalora.warmup or adalora.final"
            )
        self.check_rank(self.initial_rank, model, "initial_rank")

    @classmethod
    def check_together(cls, blocks: Sequence[Block], model: ModelSummary) -> None:
        """Refuse blocks that share a linear map, or that have a budget of their own."""
        ranks = sorted({block.rank for block in blocks if isinstance(block, cls)})
        if len(ranks) > 1:
            raise DesignError(
                "adalora blocks of one design must have the same rank, because they share one budget and training "
                f"divides it, but got {' and '.join(map(str, ranks))}; take lora for ranks of your own"
            )
        super().check_together(blocks, model)

    def describe(self) -> str:
        """Say the ranks and the roles."""
        return f"AdaLoRA r={self.initial_rank}->{self.rank} {self.describe_roles()}"

    def budget(self, progress: float, n_maps: int) -> int:
        """Return how many triplets are left over all maps.

        Args:
            progress: Part of the full training that is done, in [0, 1].
            n_maps: How many linear maps share the budget.
        """
        initial, target = self.initial_rank * n_maps, self.rank * n_maps
        u = min(max((progress - self.warmup) / (1 - self.warmup - self.final), 0.0), 1.0)
        return target + int((initial - target) * (1 - u) ** 3)

    @classmethod
    def peft_settings(cls, targets: Mapping[str, Self], *, conv1d: bool) -> dict[str, Any]:
        """Return what all blocks share."""
        first = next(iter(targets.values()))
        return {
            "init_r": first.initial_rank,
            "target_r": first.rank,
            "lora_alpha": first.alpha,
            "lora_dropout": first.dropout,
            "fan_in_fan_out": conv1d,
            "total_step": 1,  # peft wants one, and takes its own allocator's schedule from it alone
        }

    @classmethod
    def attach_all(cls, blocks: Sequence[Self], site: Site) -> None:
        """Inject all blocks as one peft adapter; start with every triplet, and without a past."""
        super().attach_all(blocks, site)
        for path in _paths(blocks, site):
            number = _layer(site, path).ranknum[ADAPTER_NAME]
            if number.requires_grad:  # peft forgets that it is a constant where it converts it to the base's dtype
                site.freeze(number)
        for name, parameter in _parameters(blocks, site):
            for average in ("sensitivity", "uncertainty"):
                site.training_state[f"{average}/{name}"] = torch.zeros_like(parameter, requires_grad=False)
        values = _values(blocks, site)
        site.training_state[_MASK] = torch.ones(
            len(values), blocks[0].initial_rank, dtype=torch.bool, device=values[0].device
        )

    @classmethod
    def penalty(cls, blocks: Sequence[Self], site: Site) -> torch.Tensor | None:
        """Return how far the P and Q of all maps are from orthogonal."""
        if not blocks[0].orthogonality:
            return None
        terms = [
            _distance_from_orthogonal(parameter if name.endswith("lora_A") else parameter.T)
            for name, parameter in _parameters(blocks, site)
            if not name.endswith("lora_E")
        ]
        return blocks[0].orthogonality * torch.stack(terms).sum()

    @classmethod
    @torch.no_grad()
    def after_step(cls, blocks: Sequence[Self], site: Site, position: StepPosition) -> None:
        """Follow the importance of every weight, and take their value from the triplets that are least important."""
        settings, progress = blocks[0], position.examples / position.full
        values, mask = _values(blocks, site), site.training_state[_MASK]
        is_final = progress >= 1 - settings.final
        if not is_final or int(mask.sum()) > settings.budget(1.0, len(values)):
            for name, parameter in _parameters(blocks, site):
                _follow(name, parameter, site.training_state)
            if is_final or (progress > settings.warmup and position.step % settings.interval == 0):
                mask.copy_(most_important(_scores(blocks, site), settings.budget(progress, len(values))))
            else:
                return  # values that were taken may grow back until the next choice
        for value, kept in zip(values, mask, strict=True):
            value.mul_(kept[:, None])

    @classmethod
    def to_peft(cls, blocks: Sequence[Self], site: Site) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Return what was injected, as peft would save it, without the triplets that have no value."""
        settings, tensors = super().to_peft(blocks, site)
        pattern = {}
        for path in _paths(blocks, site):
            kept = tensors[f"{path}.lora_E"][:, 0] != 0
            kept[0] |= not kept.any()  # peft's layers want one at least
            for name in ("lora_A", "lora_E"):
                tensors[f"{path}.{name}"] = tensors[f"{path}.{name}"][kept]
            tensors[f"{path}.lora_B"] = tensors[f"{path}.lora_B"][:, kept].contiguous()
            pattern[f"{path}.lora_E"] = kept.tolist()
        return {**settings, "rank_pattern": pattern}, tensors


def most_important(scores: torch.Tensor, n: int) -> torch.Tensor:
    """Return a mask of the n highest scores, [maps, triplets]; of equal ones the first."""
    order = scores.flatten().argsort(descending=True, stable=True)
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    mask[order[:n]] = True
    return mask.view_as(scores)


def _paths(blocks: Sequence[AdaLora], site: Site) -> list[str]:
    return [linear.path for block in blocks for linear in block.targets(site.summary)]


def _layer(site: Site, path: str) -> Any:
    """Return peft's layer at a path, inside of what other techniques have put around it."""
    return site.holder(path, "lora_E")


def _parameters(blocks: Sequence[AdaLora], site: Site) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Yield P, E and Q of every map by path and peft's name."""
    for path in _paths(blocks, site):
        layer = _layer(site, path)
        yield from ((f"{path}.{name}", getattr(layer, name)[ADAPTER_NAME]) for name in ("lora_A", "lora_E", "lora_B"))


def _values(blocks: Sequence[AdaLora], site: Site) -> list[torch.nn.Parameter]:
    return [_layer(site, path).lora_E[ADAPTER_NAME] for path in _paths(blocks, site)]


def _distance_from_orthogonal(rows: torch.Tensor) -> torch.Tensor:
    """Return ||M M^T - 1||^2."""
    return (rows @ rows.T - torch.eye(len(rows), device=rows.device)).square().sum()


def _follow(name: str, parameter: torch.nn.Parameter, state: Mapping[str, torch.Tensor]) -> None:
    """Average a weight's sensitivity and uncertainty; source: eq. 8 to 10."""
    if parameter.grad is None:
        return
    now = (parameter * parameter.grad).abs()
    sensitivity = state[f"sensitivity/{name}"].mul_(SMOOTHING).add_(now, alpha=1 - SMOOTHING)
    state[f"uncertainty/{name}"].mul_(SMOOTHING).add_((now - sensitivity).abs_(), alpha=1 - SMOOTHING)


def _scores(blocks: Sequence[AdaLora], site: Site) -> torch.Tensor:
    """Return the importance of every triplet, [maps, triplets]; source: eq. 7 and 11."""
    state, scores = site.training_state, []
    for path in _paths(blocks, site):
        a, e, b = (
            state[f"sensitivity/{path}.{name}"] * state[f"uncertainty/{path}.{name}"]
            for name in ("lora_A", "lora_E", "lora_B")
        )
        scores.append(e[:, 0] + a.mean(dim=1) + b.mean(dim=0))
    return torch.stack(scores)
