"""Bottleneck adapters: a small two-layer network in or beside the sublayers.

With d the width, m the size, W_down [m, d], W_up [d, m], f the activation and s the scaling:

    serial:    h <- h + s W_up f(W_down h),   h the output of the sublayer's last linear map
    parallel:  h <- h + s W_up f(W_down x),   x the input of the sublayer

Both maps have biases. W_up and its bias start at zero, so that the step-0 model is the base model.
Serial adapters sit before the residual sum, as in Houlsby et al.

Source: Houlsby et al. 2019 (arXiv:1902.00751), section 2.1 (after attention and MLP); Pfeiffer et al.
2021 (arXiv:2005.00247), after the MLP only; He et al. 2022 (arXiv:2110.04366), table 1 (parallel,
scaled).
"""

from collections.abc import Sequence
from itertools import product
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator, Field, PlainSerializer
from torch import nn

from autopeft.errors import DesignError
from autopeft.models.technique import Site, Technique
from autopeft.spec.block import Block, Quantization, first_shared, register
from autopeft.spec.model import ModelSummary

PLACES = ("attention", "mlp")
_OUTPUT = {"attention": "attention_output", "mlp": "mlp_down"}
_INPUT = {"attention": ("query", "qkv"), "mlp": ("mlp_up",)}


def _places(value: Any) -> Any:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, Sequence) or not value or not set(value) <= set(PLACES):
        raise ValueError("must be one or both of attention, mlp")
    return tuple(place for place in PLACES if place in value)


@register
class Adapter(Technique):
    """Settings of a bottleneck adapter.

    Attributes:
        size: Width of the bottleneck.
        mode: `serial` reads the sublayer's output, `parallel` its input.
        at: The sublayers that get one.
        scaling: Factor on what the adapter adds.
    """

    kind: ClassVar[str] = "adapter"
    size_field: ClassVar[str | None] = "size"
    # A prior, not a measurement: inside the range 3e-5 to 3e-3 that Houlsby et al. sweep.
    default_learning_rate: ClassVar[float] = 1e-3

    size: Annotated[int, Field(ge=1)]
    mode: Literal["serial", "parallel"] = "serial"
    at: Annotated[tuple[str, ...], BeforeValidator(_places), PlainSerializer(list)] = ("mlp",)
    activation: Literal["relu", "gelu"] = "relu"
    scaling: Annotated[float, Field(gt=0)] = 1.0

    def check(self, model: ModelSummary, quantization: Quantization) -> None:
        """Refuse a place that the model's layers lack, and a bottleneck wider than the model."""
        super().check(model, quantization)
        if self.size > model.hidden_size:
            raise DesignError(
                f"size <= hidden_size must hold, but got size={self.size}, hidden_size={model.hidden_size}; "
                "lower adapter.size"
            )
        for place in self.at:
            needed = [(_OUTPUT[place],)] + ([_INPUT[place]] if self.mode == "parallel" else [])
            for roles in needed:
                if not any(role in model.roles for role in roles):
                    raise DesignError(
                        f"a {self.mode} adapter at {place} needs the role {' or '.join(roles)}, but the model has only "
                        f"{', '.join(model.roles)}; change adapter.at"
                    )

    @classmethod
    def check_together(cls, blocks: Sequence[Block], model: ModelSummary) -> None:
        """Refuse two adapters in one place: what each reads would depend on their order."""
        adapters = [block for block in blocks if isinstance(block, Adapter)]
        shared = first_shared(product(block.layer_indices(model), block.at) for block in adapters)
        if shared is not None:
            raise DesignError(
                f"a sublayer can have one adapter, but two blocks want {shared[1]} of layer {shared[0]}; "
                "make their layers or places disjoint"
            )

    def describe(self) -> str:
        """Say the mode, the size and the places."""
        return f"{self.mode} adapter {self.size} at {' and '.join(self.at)}"

    def attach(self, site: Site) -> None:
        """Add one bottleneck for each layer and place, and hook it in."""
        for layer in self.layer_indices(site.summary):
            for place in self.at:
                self._attach_one(site, layer, place)

    def _attach_one(self, site: Site, layer: int, place: str) -> None:
        summary = site.summary.layers[layer]
        output = summary.roles[_OUTPUT[place]]
        source = output.out_features
        if self.mode == "parallel":
            read = next(role for role in _INPUT[place] if role in summary.roles)
            source = summary.roles[read].in_features
        bottleneck = Bottleneck(source, self.size, output.out_features, self.activation, self.scaling)
        site.add(summary.path, f"autopeft_adapter_{place}", bottleneck)
        if self.mode == "serial":
            site.hook(site.module(output.path), lambda _module, _args, hidden: hidden + bottleneck(hidden))
            return
        # One slot and not a list: a forward that stops half-way (checkpointing) must not leave its input behind.
        slot: dict[str, torch.Tensor] = {}
        site.pre_hook(site.linear(layer, read), lambda _module, args, _kwargs: slot.update(x=args[0]))
        site.hook(site.module(output.path), lambda _module, _args, hidden: hidden + bottleneck(slot.pop("x")))


class Bottleneck(nn.Module):
    """s W_up f(W_down x): maps [..., n_in] to [..., n_out], computing in fp32 or under autocast."""

    def __init__(self, n_in: int, size: int, n_out: int, activation: str, scaling: float) -> None:
        super().__init__()
        self.down = nn.Linear(n_in, size)
        self.up = nn.Linear(size, n_out)
        self.activation = nn.ReLU() if activation == "relu" else nn.GELU()
        self.scaling = scaling
        # Near-zero in Houlsby et al.; exactly zero on the way up keeps the step-0 model equal to the base.
        nn.init.normal_(self.down.weight, std=0.02)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return what the adapter adds, in the dtype of its input."""
        added: torch.Tensor = self.up(self.activation(self.down(hidden.to(self.down.weight.dtype))))
        return self.scaling * added.to(hidden.dtype)
