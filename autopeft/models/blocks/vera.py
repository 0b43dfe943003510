"""VeRA: frozen random projections, the same for all linear maps, between two trained vectors of each map.

y = W x + l_b * B (l_d * (A x)), with A [rank, in_features] and B [out_features, rank]: the first columns and rows of
two matrices as large as the largest map needs. l_b starts at zero, so that the step-0 model is the base model;
l_d starts at `d_initial`.

Source: Kopiczko et al. 2024 (arXiv:2310.11454), eq. 2 and section 3.3 (initialisation). Slices for maps of
different shapes are peft's.
Omits: peft's layer is not used. peft sizes the projections by the maps that nothing wraps yet and keeps them outside
of the model, so that it refuses to inject them. Its format is.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from autopeft.errors import DesignError
from autopeft.models.linear_technique import UnscaledTechnique
from autopeft.models.technique import Site
from autopeft.spec.block import Quantization, register
from autopeft.spec.model import LinearSummary, ModelSummary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SHARED = "autopeft_vera_projections"


@register
class Vera(UnscaledTechnique):
    """Settings of a VeRA block.

    Attributes:
        rank: Of the projections; larger than LoRA's, because each adds but one trained number to a map.
        d_initial: Start of l_d.
    """

    kind: ClassVar[str] = "vera"
    size_is_factor: ClassVar[bool] = True
    peft_type: ClassVar[str] = "VERA"
    peft_names: ClassVar[Mapping[str, str]] = {"lambda_b": "vera_lambda_b", "lambda_d": "vera_lambda_d"}
    peft_takes_transposed: ClassVar[bool] = True
    # A prior, not a measurement: ten times LoRA's of here, as Kopiczko et al. do in instruction tuning (appendix A).
    default_learning_rate: ClassVar[float] = 1e-2

    d_initial: Annotated[float, Field(gt=0)] = 0.1

    def check(self, model: ModelSummary, quantization: Quantization) -> None:
        """Refuse a role that the model lacks, and more directions than a map has weights."""
        super().check(model, quantization)
        for linear in self.targets(model):
            if self.rank > linear.in_features * linear.out_features:
                raise DesignError(
                    f"rank <= in_features * out_features must hold, but got rank={self.rank} for {linear.path} of "
                    f"{linear.in_features} x {linear.out_features}; lower vera.rank"
                )

    def describe(self) -> str:
        """Say the rank and the roles."""
        return f"VeRA r={self.rank} {self.describe_roles()}"

    def build(self, linear: LinearSummary) -> nn.Module:
        """Return the two vectors; `attach_all` gives them the projections."""
        return VectorPair(linear.out_features, self.rank, self.d_initial)

    @classmethod
    def attach_all(cls, blocks: Sequence[Self], site: Site) -> None:
        """Put the projections into the model, and two vectors beside each map."""
        targets = [linear for block in blocks for linear in block.targets(site.summary)]
        n_in = max(linear.in_features for linear in targets)
        n_out = max(linear.out_features for linear in targets)
        shared = Projections(n_in, n_out, max(block.rank for block in blocks))
        site.add("", _SHARED, shared)
        super().attach_all(blocks, site)
        for linear in targets:
            pair = site.module(f"{linear.path}.autopeft_vera")
            assert isinstance(pair, VectorPair)
            pair.share(shared)

    @classmethod
    def peft_settings(cls, targets: Mapping[str, Self], *, conv1d: bool) -> dict[str, Any]:
        """Return the rank, and that the projections are in the file."""
        first = next(iter(targets.values()))
        rank = super().peft_settings(targets, conv1d=conv1d)
        return {**rank, "d_initial": first.d_initial, "fan_in_fan_out": conv1d, "save_projection": True}

    @classmethod
    def to_peft(cls, blocks: Sequence[Self], site: Site) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Return peft's settings, the vectors, and the projections, which another machine might draw otherwise."""
        settings, tensors = super().to_peft(blocks, site)
        shared = site.module(_SHARED)
        assert isinstance(shared, Projections)
        projections = {"vera_A": shared.down, "vera_B": shared.up}
        return settings, {**tensors, **{n: p.detach().cpu().contiguous() for n, p in projections.items()}}

    @classmethod
    def from_peft(cls, tensors: Mapping[str, torch.Tensor], model: "PreTrainedModel") -> dict[str, torch.Tensor]:
        """Return the tensors by their path in the attached model."""
        names = {"base_model.vera_A": f"{_SHARED}.down", "base_model.vera_B": f"{_SHARED}.up"}
        own = {name: tensor for name, tensor in tensors.items() if name not in names}
        return {**super().from_peft(own, model), **{names[name]: tensors[name] for name in names}}


class Projections(nn.Module):
    """A (`down`) [rank, n_in] and B (`up`) [n_out, rank]: frozen, uniform as He et al. scale them."""

    def __init__(self, n_in: int, n_out: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, n_in), requires_grad=False)
        self.up = nn.Parameter(torch.empty(n_out, rank), requires_grad=False)
        for projection in (self.down, self.up):
            nn.init.kaiming_uniform_(projection, a=0)


class VectorPair(nn.Module):
    """l_b * B (l_d * (A x)) with `lambda_b` [n_out] and `lambda_d` [rank]; A and B belong to the model."""

    def __init__(self, n_out: int, rank: int, d_initial: float) -> None:
        super().__init__()
        self.lambda_b = nn.Parameter(torch.zeros(n_out))
        self.lambda_d = nn.Parameter(torch.full((rank,), d_initial))

    def share(self, projections: Projections) -> None:
        """Use projections that are no part of this module."""
        self._projections = (projections,)  # torch would register the bare module as a child

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return what the vectors add, in the dtype of the projections."""
        (projections,) = self._projections
        rank, n_in, n_out = len(self.lambda_d), hidden.shape[-1], len(self.lambda_b)
        down = projections.down[:rank, :n_in].to(hidden.device)  # layers may be on other devices than the projections
        up = projections.up[:n_out, :rank].to(hidden.device)
        narrow = self.lambda_d * functional.linear(hidden.to(down.dtype), down)
        return self.lambda_b * functional.linear(narrow, up)
