"""Bottleneck adapters: a small two-layer network in or beside the sublayers.

With d the width, m the size, W_down [m, d], W_up [d, m], f the activation and s the scaling:

    serial:    h <- h + s W_up f(W_down h),   h the output of the sublayer's last linear map
    parallel:  h <- h + s W_up f(W_down x),   x the input of the sublayer

Both maps have biases. W_up and its bias start at zero, so that the step-0 model is the base model.

| paper | settings |
|---|---|
| Houlsby et al. 2019 (arXiv:1902.00751), section 2.1 | serial, at attention and MLP |
| Pfeiffer et al. 2021 (arXiv:2005.00247), section 4.2 | serial, at the MLP |
| He et al. 2022 (arXiv:2110.04366), table 1 | parallel, at attention or MLP, with a scaling |
| UniPELT, Mao et al. 2022 (arXiv:2110.07577) | serial, at the MLP, gated |
| AdaMix, Wang et al. 2022 (arXiv:2205.12410), sections 3.1 and 3.3 | any of these, with 4 experts |

A sublayer may have a serial and a parallel adapter at once, as in AutoPEFT (Zhou et al. 2024, arXiv:2301.12132).

Omits: Pfeiffer et al. and AutoPEFT read behind the layer norm of post-norm models. Of AdaMix: the consistency loss
(section 3.2), which takes a second forward of each batch, and the sharing of projections among experts (3.4).
"""

from collections.abc import Callable
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from autopeft.models.bottleneck_technique import Bottleneck, BottleneckTechnique
from autopeft.models.gate import Gate
from autopeft.models.technique import Site
from autopeft.spec.block import register

_DOWN_STD = 0.02
"""Near-zero in Houlsby et al.; exactly zero on the way up keeps the step-0 model equal to the base."""


@register
class Adapter(BottleneckTechnique):
    """Settings of a bottleneck adapter.

    Attributes:
        experts: How many pairs of maps each adapter has. A forward in training takes a random map down and a
            random map up; an evaluation averages their weights, and an export holds the average alone.
    """

    kind: ClassVar[str] = "adapter"
    size_is_factor: ClassVar[bool] = True
    # A prior, not a measurement: inside the range 3e-5 to 3e-3 that Houlsby et al. sweep.
    default_learning_rate: ClassVar[float] = 1e-3

    experts: Annotated[int, Field(ge=1, le=256)] = 1

    def describe(self) -> str:
        """Say the mode, the size, the variant and the places."""
        variants = self.describe_variants() + ([] if self.experts == 1 else [f"{self.experts} experts"])
        words = f" ({', '.join(variants)})" if variants else ""
        return f"{self.mode} adapter {self.size}{words} {self.describe_places()}"

    def make_maps(self, site: Site, n_in: int, n_out: int) -> tuple[nn.Module, nn.Module]:
        """Return two linear maps, or the experts' linear maps."""
        if self.experts > 1:
            down: nn.Linear | ExpertLinear = ExpertLinear(n_in, self.size, self.experts)
            up: nn.Linear | ExpertLinear = ExpertLinear(self.size, n_out, self.experts)
        else:
            down, up = nn.Linear(n_in, self.size), nn.Linear(self.size, n_out)
        nn.init.normal_(down.weight, std=_DOWN_STD)
        for parameter in (down.bias, up.weight, up.bias):
            nn.init.zeros_(parameter)
        return down, up

    def make_bottleneck(
        self, site: Site, layer: int, place: str, new_gate: Callable[[int, int], Gate] | None
    ) -> Bottleneck:
        """Return a new bottleneck for a sublayer; one of experts can be folded."""
        made = super().make_bottleneck(site, layer, place, new_gate)
        if self.experts == 1:
            return made
        return ExpertBottleneck(made.down, made.up, made.activation, made.scaling, made.gate)


class ExpertBottleneck(Bottleneck):
    """A bottleneck of two `ExpertLinear`, which an export folds to a plain one."""

    def folded(self) -> Bottleneck:
        """Return the bottleneck of the mean weights."""
        assert isinstance(self.down, ExpertLinear)
        assert isinstance(self.up, ExpertLinear)
        return Bottleneck(self.down.averaged(), self.up.averaged(), self.activation, self.scaling, self.gate)


class ExpertLinear(nn.Module):
    """Linear maps of one shape: a random one in training, the map of their mean weights otherwise.

    The draw comes from torch's generator, which training seeds by the trial and the step.

    Source: Wang et al. 2022 (arXiv:2205.12410), sections 3.1 (routing) and 3.3 (merging).
    """

    def __init__(self, n_in: int, n_out: int, n_experts: int) -> None:
        super().__init__()
        # One tensor of all experts: a step costs the same whichever is drawn, and none is without a gradient.
        self.weight = nn.Parameter(torch.zeros(n_experts, n_out, n_in))
        self.bias = nn.Parameter(torch.zeros(n_experts, n_out))

    def averaged(self) -> nn.Linear:
        """Return the linear map of the mean weights."""
        _, n_out, n_in = self.weight.shape
        linear = nn.Linear(n_in, n_out, device=self.weight.device)
        linear.weight = nn.Parameter(self.weight.detach().mean(0))
        linear.bias = nn.Parameter(self.bias.detach().mean(0))
        return linear

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map [..., n_in] to [..., n_out]."""
        if not self.training:
            return functional.linear(hidden, self.weight.mean(0), self.bias.mean(0))
        drawn = torch.randint(len(self.weight), (1,), device=hidden.device)  # never read on the CPU: no stall on a GPU
        return functional.linear(hidden, self.weight.index_select(0, drawn)[0], self.bias.index_select(0, drawn)[0])
