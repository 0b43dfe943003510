"""One row for each technique and variant: how a design names it, and how many numbers its paper trains.

A new technique adds one row here; every test over techniques, architectures and quantizations takes its rows from
this table.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from autopeft.models.linear_technique import LinearTechnique
from autopeft.spec.block import Block, make_block
from autopeft.spec.model import LayerSummary, LinearSummary, ModelSummary

Count = Callable[[Any, ModelSummary], int]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A technique or a variant of one.

    Attributes:
        name: What tests are called by, the kind first.
        settings: Of the block, for models of a few narrow layers.
        count: The paper's formula: trainable numbers of a block on a model.
    """

    name: str
    kind: str
    settings: dict[str, Any]
    count: Count

    @property
    def block(self) -> dict[str, Any]:
        """Return the block's JSON form."""
        return {self.kind: self.settings}

    def make(self) -> Block:
        """Return the block."""
        return make_block(self.kind, self.settings)


def maps(block: LinearTechnique, model: ModelSummary) -> list[LinearSummary]:
    """Return the linear maps that a block names, found by layer and role."""
    layers = [model.layers[index] for index in block.layer_indices(model)]
    return [
        linear
        for layer in layers
        for role, linear in layer.roles.items()
        if block.roles in ("all",) or role in block.roles
    ]


def lora(block: Any, model: ModelSummary) -> int:
    """A [r, in] and B [out, r] for each map, and a norm for each output of DoRA."""
    return sum(
        block.rank * (linear.in_features + linear.out_features) + block.dora * linear.out_features
        for linear in maps(block, model)
    )


def _width_in(layer: LayerSummary, block: Any, place: str) -> int:
    roles = {"attention": ("query", "qkv"), "mlp": ("mlp_up",)}[place]
    if block.mode == "serial":
        return layer.roles[{"attention": "attention_output", "mlp": "mlp_down"}[place]].out_features
    return next(layer.roles[role].in_features for role in roles if role in layer.roles)


def adapter(block: Any, model: ModelSummary) -> int:
    """Both maps and both biases, for each sublayer."""
    total = 0
    for index in block.layer_indices(model):
        layer = model.layers[index]
        for place in block.at:
            n_out = layer.roles[{"attention": "attention_output", "mlp": "mlp_down"}[place]].out_features
            total += (_width_in(layer, block, place) + 1) * block.size + (block.size + 1) * n_out
    return total


def ia3(block: Any, model: ModelSummary) -> int:
    """One factor for each key, each value and each inner activation."""
    layers = [model.layers[index].roles for index in block.layer_indices(model)]
    return sum(r["key"].out_features + r["value"].out_features + r["mlp_down"].in_features for r in layers)


def prefix(block: Any, model: ModelSummary) -> int:
    """A key and a value for each position of each layer."""
    return len(block.layer_indices(model)) * 2 * block.length * model.n_key_value_heads * model.head_size


def prompt(block: Any, model: ModelSummary) -> int:
    """An embedding for each position."""
    return int(block.length) * model.hidden_size


ROWS = (
    Row(name="lora", kind="lora", settings={"rank": 2}, count=lora),
    Row(
        name="lora, rslora",
        kind="lora",
        settings={"rank": 4, "rslora": True, "roles": ["query", "value", "mlp_down"]},
        count=lora,
    ),
    Row(
        name="lora, dora",
        kind="lora",
        settings={"rank": 2, "dora": True, "roles": ["key", "value", "mlp_down"]},
        count=lora,
    ),
    # GELU: with ReLU three features can all be zero for such short texts, and then nothing gets a gradient
    Row(
        name="adapter, serial",
        kind="adapter",
        settings={"size": 3, "at": ["attention", "mlp"], "activation": "gelu"},
        count=adapter,
    ),
    Row(
        name="adapter, parallel",
        kind="adapter",
        settings={"size": 3, "at": ["attention", "mlp"], "mode": "parallel", "layers": [0, 2], "activation": "gelu"},
        count=adapter,
    ),
    Row(name="ia3", kind="ia3", settings={}, count=ia3),
    Row(name="prefix", kind="prefix", settings={"length": 3, "layers": [1]}, count=prefix),
    Row(name="prefix, all layers", kind="prefix", settings={"length": 3}, count=prefix),
    Row(name="prompt", kind="prompt", settings={"length": 4}, count=prompt),
)
BY_NAME = {row.name: row for row in ROWS}
