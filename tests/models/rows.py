"""One row for each technique and variant: how a design names it, and how many numbers its paper trains.

A new technique adds one row here; every test over techniques, architectures and quantizations takes its rows from
this table.
"""

import itertools
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tiny_models import HEADS, IMAGE_HEAD, design, perturb

from autopeft.models.artifact import pack
from autopeft.models.attach import attach
from autopeft.models.base import Base
from autopeft.models.linear_technique import LinearTechnique
from autopeft.spec.block import Block, make_block
from autopeft.spec.model import LinearSummary, ModelSummary

Count = Callable[[Any, ModelSummary], int]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A technique or a variant of one.

    Attributes:
        name: What tests are called by, the kind first.
        settings: Of the block, for models of a few narrow layers; or a function that returns them for a base.
        count: The paper's formula: trainable numbers of a block on a model.
        refused_on: Architectures of `tiny_models` that the technique must be refused on; it must work on all others.
        may_be_idle: Why a parameter may get no gradient in one step; empty where each must get one.
    """

    name: str
    kind: str
    settings: dict[str, Any] | Callable[[Base], dict[str, Any]]
    count: Count
    refused_on: tuple[str, ...] = ()
    may_be_idle: str = ""

    def make(self, base: Base) -> Block:
        """Return the block for a base; roles that the base has fused into one map become that map's."""
        settings = self.settings(base) if callable(self.settings) else self.settings
        if "roles" in settings and "qkv" in base.summary.roles:
            fused = {"query": "qkv", "key": "qkv", "value": "qkv"}
            settings = settings | {"roles": [fused.get(role, role) for role in settings["roles"]]}
        return make_block(self.kind, settings)

    @property
    def conflicts(self) -> frozenset[str]:
        """Return the quantizations and kinds that the block cannot go with; none where it depends on the base."""
        return frozenset() if callable(self.settings) else frozenset(make_block(self.kind, self.settings).conflicts())


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
    """A [r, in] unless it is frozen and B [out, r] for each map; DoRA's norm of each output; a gate's map to 1."""
    return sum(
        block.rank * (linear.in_features * (not block.freeze_a) + linear.out_features)
        + block.dora * linear.out_features
        + block.gate * (linear.in_features + 1)
        for linear in maps(block, model)
    )


def loha(block: Any, model: ModelSummary) -> int:
    """Two pairs of factors of the rank for each map."""
    return sum(2 * block.rank * (linear.in_features + linear.out_features) for linear in maps(block, model))


def _divisors(n_features: int, factor: int) -> tuple[int, int]:
    """Return the factor and its quotient, or the divisors nearest to the square root."""
    first = factor if factor > 0 else math.isqrt(n_features)
    while n_features % first:
        first -= 1
    return first, n_features // first


def lokr(block: Any, model: ModelSummary) -> int:
    """C [o1, i1] and a right factor [o2, i2]; what is decomposed has r (o + i) instead of o i."""
    total = 0
    for linear in maps(block, model):
        (o1, o2), (i1, i2) = (_divisors(n, block.factor) for n in (linear.out_features, linear.in_features))
        both, right = block.decompose_both and 2 * block.rank < max(o1, i1), 2 * block.rank < max(o2, i2)
        total += block.rank * (o1 + i1) if both else o1 * i1
        total += block.rank * (o2 + i2) if right else o2 * i2
    return total


def miss(block: Any, model: ModelSummary) -> int:
    """D [r, out] for each map."""
    return sum(block.rank * linear.out_features for linear in maps(block, model))


def oft(block: Any, model: ModelSummary) -> int:
    """in / b skew-symmetric blocks of b (b - 1) / 2 numbers for each map."""
    size = block.block_size
    return sum(linear.in_features // size * size * (size - 1) // 2 for linear in maps(block, model))


def shira(block: Any, model: ModelSummary) -> int:
    """As many weights of each map as LoRA of the rank has."""
    return sum(block.rank * (linear.in_features + linear.out_features) for linear in maps(block, model))


def vera(block: Any, model: ModelSummary) -> int:
    """l_b [out] and l_d [r] for each map; the projections do not train."""
    return sum(block.rank + linear.out_features for linear in maps(block, model))


def adalora(block: Any, model: ModelSummary) -> int:
    """P [out, r], Q [r, in] and r values for each map, r what it starts with: 1.5 times the rank."""
    return sum(math.ceil(1.5 * block.rank) * (m.in_features + m.out_features + 1) for m in maps(block, model))


def _widths(block: Any, model: ModelSummary) -> Iterator[tuple[int, int]]:
    """Yield the width that a bottleneck reads, and the width that it adds to, for each sublayer."""
    for index, place in itertools.product(block.layer_indices(model), block.at):
        roles = model.layers[index].roles
        first = {"attention": ("query", "qkv"), "mlp": ("mlp_up",)}[place]
        n_out = roles[{"attention": "attention_output", "mlp": "mlp_down"}[place]].out_features
        n_in = next(roles[role].in_features for role in first if role in roles) if block.mode == "parallel" else n_out
        yield n_in, n_out


def adapter(block: Any, model: ModelSummary) -> int:
    """Both maps and both biases of each expert, and a gate's weights and bias, for each sublayer."""
    total = 0
    for n_in, n_out in _widths(block, model):
        total += block.experts * ((n_in + 1) * block.size + (block.size + 1) * n_out) + block.gate * (n_in + 1)
    return total


def compacter(block: Any, model: ModelSummary) -> int:
    """The shared n x n x n; for each map of k to d numbers the factors, r (k + d), and d biases; a gate's map to 1."""
    total = int(block.n**3)
    for n_in, n_out in _widths(block, model):
        total += sum(block.rank * (k + d) + d for k, d in ((n_in, block.size), (block.size, n_out)))
        total += block.gate * (n_in + 1)
    return total


def ia3(block: Any, model: ModelSummary) -> int:
    """One factor for each key, each value and each inner activation; keys and values of cross-attention too."""
    layers = [model.layers[index].roles for index in block.layer_indices(model)]
    scaled = ("key", "value", "cross_key", "cross_value")
    return sum(r["mlp_down"].in_features + sum(r[role].out_features for role in scaled if role in r) for r in layers)


def prefix(block: Any, model: ModelSummary) -> int:
    """A key and a value for each position of each layer, or an MLP that computes them; a gate's map to 1."""
    n_layers, width = len(block.layer_indices(model)), 2 * model.n_key_value_heads * model.head_size
    total = n_layers * block.length * width
    if block.projection:  # embeddings [length, k], a map from k to k, and one from k to all keys and values
        k = block.projection_size
        total = block.length * k + (k + 1) * k + (k + 1) * n_layers * width
    return total + block.gate * n_layers * (model.hidden_size + 1)


def prompt(block: Any, model: ModelSummary) -> int:
    """An embedding for each position, and the encoder: three maps, or a bidirectional LSTM of two layers and two."""
    d, h = model.hidden_size, block.encoder_hidden_size or model.hidden_size
    mlp = (d + 1) * h + (h + 1) * h + (h + 1) * d
    lstm = sum(2 * 4 * h * (n_in + h + 2) for n_in in (d, 2 * h)) + (2 * h + 1) * 2 * h + (2 * h + 1) * d
    return int(block.length) * d + {"none": 0, "mlp": mlp, "lstm": lstm}[block.encoder]


def deep_prompt(block: Any, model: ModelSummary) -> int:
    """An embedding for each token of each layer."""
    return len(block.layer_indices(model)) * int(block.length) * model.hidden_size


_EXPORTS = tempfile.TemporaryDirectory(prefix="autopeft-members-")


def exported(base: Base) -> list[str]:
    """Return the folders of two adapters for a model, as earlier studies would have exported them."""
    folder = Path(_EXPORTS.name) / base.summary.architecture / base.summary.fingerprint
    blocks = ({"size": 3, "activation": "gelu"}, {"size": 2, "activation": "gelu", "mode": "parallel", "layers": [0]})
    for number, block in enumerate(blocks):
        member = folder / str(number)
        if not (member / "autopeft.json").is_file():
            member.mkdir(parents=True, exist_ok=True)
            made = design({"adapter": block}, quantization=base.quantization)
            with attach(base, made) as attached:
                perturb(attached, seed=number)
                for name, content in pack(attached, metadata={}).items():
                    (member / name).write_bytes(content)
    return [str(folder / str(number)) for number in range(len(blocks))]


def fusion(block: Any, model: ModelSummary) -> int:
    """A value map for each place with an adapter, and a query and a key map where two meet: [d, d] each."""
    n_members = [
        sum(index in b.layer_indices(model) for m in block.adapters for b in m.blocks)
        for index in range(model.n_layers)
    ]
    widths = [layer.roles["mlp_down"].out_features for layer in model.layers]
    return sum((3 if n > 1 else n) * width**2 for n, width in zip(n_members, widths, strict=True))


def bitfit(block: Any, model: ModelSummary) -> int:
    """One number for each output of a map with a bias, and for each feature of a norm with one."""
    layers = [model.layers[index] for index in block.layer_indices(model)]
    norms = sum(norm.n_features for layer in layers for norm in layer.norms if norm.has_bias)
    return sum(linear.out_features for linear in maps(block, model) if linear.has_bias) + block.norms * norms


def norms(block: Any, model: ModelSummary) -> int:
    """A factor for each feature of a norm, and a bias where there is one."""
    inner = [norm for index in block.layer_indices(model) for norm in model.layers[index].norms]
    every = [*inner, *(model.outer_norms if block.outer else ())]
    return sum(norm.n_features * (1 + norm.has_bias) for norm in every)


def full(block: Any, model: ModelSummary) -> int:
    """All that the layers have in transformers' own model of the configuration."""
    layers = tuple(f"{model.layers[index].path}." for index in block.layer_indices(model))
    with torch.device("meta"):
        plain = getattr(transformers, model.architecture)(transformers.AutoConfig.from_pretrained(model.name))
    return sum(parameter.numel() for name, parameter in plain.named_parameters() if name.startswith(layers))


NO_BIASES = ("llama", "qwen", "mistral", "gemma", "t5")
"""Architectures whose linear maps have no bias."""

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
    Row(name="lora, frozen A", kind="lora", settings={"rank": 3, "freeze_a": True}, count=lora),
    Row(name="lora, plus", kind="lora", settings={"rank": 2, "b_rate_ratio": 16, "layers": [0, 1]}, count=lora),
    Row(name="lora, gated", kind="lora", settings={"rank": 2, "gate": True, "layers": [1, 2]}, count=lora),
    Row(name="loha", kind="loha", settings={"rank": 2}, count=loha),
    Row(name="lokr", kind="lokr", settings={"rank": 2}, count=lokr),
    Row(name="lokr, both decomposed", kind="lokr", settings={"rank": 1, "decompose_both": True}, count=lokr),
    Row(name="lokr, full factor", kind="lokr", settings={"rank": 8, "factor": 4, "roles": ["query"]}, count=lokr),
    Row(name="oft", kind="oft", settings={"block_size": 4}, count=oft, refused_on=("gpt2",)),
    Row(
        name="oft, exact",
        kind="oft",
        settings={"block_size": 8, "exact": True, "roles": ["query", "mlp_down"]},
        count=oft,
        refused_on=("gpt2",),
    ),
    Row(name="miss", kind="miss", settings={"rank": 4}, count=miss),
    Row(name="miss, padded", kind="miss", settings={"rank": 5, "layers": [1]}, count=miss),
    Row(name="shira", kind="shira", settings={"rank": 2}, count=shira),
    Row(name="vera", kind="vera", settings={"rank": 12}, count=vera),
    Row(
        name="adalora",
        kind="adalora",
        settings={"rank": 2, "roles": ["query", "value", "mlp_down"]},
        count=adalora,
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
    Row(
        name="adapter, gated",
        kind="adapter",
        settings={"size": 3, "gate": True, "layers": [1, 2], "activation": "gelu"},
        count=adapter,
    ),
    Row(
        name="adapter, experts",
        kind="adapter",
        settings={"size": 3, "experts": 3, "layers": [0, 2], "activation": "gelu"},
        count=adapter,
    ),
    Row(name="compacter", kind="compacter", settings={"size": 8}, count=compacter),
    Row(
        name="compacter, parallel",
        kind="compacter",
        settings={"size": 8, "n": 2, "rank": 2, "mode": "parallel", "at": "mlp", "gate": True, "layers": [0, 1]},
        count=compacter,
    ),
    Row(name="ia3", kind="ia3", settings={}, count=ia3, refused_on=("gpt2",)),
    Row(name="prefix", kind="prefix", settings={"length": 3, "layers": [1]}, count=prefix),
    Row(name="prefix, all layers", kind="prefix", settings={"length": 3}, count=prefix),
    Row(
        name="prefix, projection",
        kind="prefix",
        settings={"length": 3, "projection": True, "projection_size": 6, "layers": [0, 2]},
        count=prefix,
    ),
    Row(name="prefix, gated", kind="prefix", settings={"length": 3, "gate": True, "layers": [0, 1]}, count=prefix),
    Row(name="prompt", kind="prompt", settings={"length": 4}, count=prompt, refused_on=("t5", "whisper")),
    Row(
        name="prompt, mlp",
        kind="prompt",
        settings={"length": 4, "encoder": "mlp"},
        count=prompt,
        refused_on=("t5", "whisper"),
    ),
    Row(
        name="prompt, lstm",
        kind="prompt",
        settings={"length": 4, "encoder": "lstm", "encoder_hidden_size": 6},
        count=prompt,
        refused_on=("t5", "whisper"),
    ),
    Row(
        name="deep_prompt",
        kind="deep_prompt",
        settings={"length": 2, "layers": [0, 2]},
        count=deep_prompt,
        refused_on=tuple(name for name, head in HEADS.items() if head is not IMAGE_HEAD),
    ),
    Row(
        name="bitfit",
        kind="bitfit",
        settings={"layers": [0]},
        count=bitfit,
        refused_on=NO_BIASES,
        may_be_idle="a bias of keys moves all scores of a query alike",
    ),
    Row(
        name="bitfit, half",
        kind="bitfit",
        settings={"roles": ["query", "mlp_up"], "norms": False, "layers": [0]},
        count=bitfit,
        refused_on=NO_BIASES,
    ),
    Row(name="norms", kind="norms", settings={"layers": [1]}, count=norms),
    Row(name="norms, outer", kind="norms", settings={"layers": [1], "outer": True}, count=norms),
    Row(name="full", kind="full", settings={"layers": [2]}, count=full),
    Row(name="fusion", kind="fusion", settings=lambda base: {"adapters": exported(base)}, count=fusion),
)
BY_NAME = {row.name: row for row in ROWS}
