"""Techniques that add a small two-layer network to the sublayers of a model: what they have in common.

With h the output of the sublayer's last linear map and x the sublayer's input, both as the base, LoRA and (IA)^3
make them, a sublayer with a serial bottleneck S and a parallel one P gives

    h + S(h) + P(x)

Neither reads what the other adds: what a design computes does not depend on the order of its blocks. The sum
is taken where the sublayer's last linear map ends, before dropout, the residual sum and a layer norm behind it.
Where two kinds are in one sublayer, h of the kind that is later in the alphabet is the sum of the earlier one.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import torch
from pydantic import BeforeValidator, Field, PlainSerializer
from torch import nn

from autopeft.errors import DesignError
from autopeft.models.gate import Gate, gate_maker
from autopeft.models.technique import Site, Technique
from autopeft.spec.block import Block, Quantization, first_shared
from autopeft.spec.model import LayerSummary, LinearSummary, ModelSummary

OUTPUT = {"attention": "attention_output", "cross_attention": "cross_attention_output", "mlp": "mlp_down"}
"""The role of the last linear map of each kind of sublayer."""
INPUT = {"attention": ("query", "qkv"), "cross_attention": ("cross_query",), "mlp": ("mlp_up",)}
"""The roles of which the first that a layer has reads the sublayer's input."""
PLACES = tuple(OUTPUT)
_WORDS = {"attention": "attention", "cross_attention": "cross-attention", "mlp": "MLP"}


def _places(value: Any) -> Any:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, Sequence) or not value or not all(place in PLACES for place in value):
        raise ValueError(f"must be one or more of {', '.join(PLACES)}")
    return tuple(place for place in PLACES if place in value)


Places = Annotated[tuple[str, ...], BeforeValidator(_places), PlainSerializer(list)]
"""Kinds of sublayers, in the order in which a layer computes them; one may be given as a string."""


Bottlenecked = TypeVar("Bottlenecked", bound="BottleneckTechnique")


class BottleneckTechnique(Technique):
    """Settings that every bottleneck has; a subclass adds its own, and `make_maps`.

    Attributes:
        size: Width of the bottleneck.
        mode: `serial` reads the sublayer's output, `parallel` its input.
        at: The sublayers that get one, in those of the layers that have them.
        scaling: Factor on what the bottleneck adds.
        gate: Multiply what it adds by UniPELT's gate of what it reads.
    """

    size_field: ClassVar[str | None] = "size"

    size: Annotated[int, Field(ge=1)]
    mode: Literal["serial", "parallel"] = "serial"
    at: Places = ("mlp",)
    activation: Literal["relu", "gelu"] = "relu"
    scaling: Annotated[float, Field(gt=0)] = 1.0
    gate: bool = False

    @property
    def merge_obstacle(self) -> str:
        """Say what no weight can hold."""
        return "no weight can hold the nonlinearity of a bottleneck"

    def make_maps(self, site: Site, n_in: int, n_out: int) -> tuple[nn.Module, nn.Module]:
        """Return the map from [..., n_in] to [..., size] and that to [..., n_out], which must start at zero."""
        raise NotImplementedError

    def maps(self, layer: LayerSummary, place: str) -> tuple[LinearSummary, LinearSummary] | None:
        """Return the linear map whose input or output is read, and the one whose output is added to, or None."""
        last = layer.roles.get(OUTPUT[place])
        if last is None or self.mode == "serial":
            return None if last is None else (last, last)
        first = next((layer.roles[role] for role in INPUT[place] if role in layer.roles), None)
        return None if first is None else (first, last)

    def widths(self, layer: LayerSummary, place: str) -> tuple[int, int]:
        """Return the width of what is read in a place that the layer has, and of what is added."""
        found = self.maps(layer, place)
        assert found is not None
        read, last = found
        return last.out_features if self.mode == "serial" else read.in_features, last.out_features

    def sublayers(self, model: ModelSummary) -> Iterator[tuple[int, str]]:
        """Yield (layer, place) of each sublayer that gets a bottleneck."""
        for layer, place in product(self.layer_indices(model), self.at):
            if self.maps(model.layers[layer], place) is not None:
                yield layer, place

    def check(self, model: ModelSummary, quantization: Quantization) -> None:
        """Refuse a place that none of the layers has, and a bottleneck wider than the model."""
        super().check(model, quantization)
        if self.size > model.hidden_size:
            raise DesignError(
                f"size <= hidden_size must hold, but got size={self.size}, hidden_size={model.hidden_size}; "
                f"lower {self.kind}.size"
            )
        missing = set(self.at) - {place for _, place in self.sublayers(model)}
        if missing and self.layer_indices(model):
            place = min(missing)
            needed = [OUTPUT[place]] + ([" or ".join(INPUT[place])] if self.mode == "parallel" else [])
            present = {role: None for layer in self.layer_indices(model) for role in model.layers[layer].roles}
            raise DesignError(
                f"a {self.mode} {self.kind} at {place} needs a layer with the role {' and '.join(needed)}, but the "
                f"chosen layers have only {', '.join(present)}; change {self.kind}.at or {self.kind}.layers"
            )

    @classmethod
    def check_together(cls, blocks: Sequence[Block], model: ModelSummary) -> None:
        """Refuse two blocks of one mode in one place: they would be one wider bottleneck."""
        own = [block for block in blocks if isinstance(block, cls)]
        shared = first_shared(((*at, block.mode) for at in block.sublayers(model)) for block in own)
        if shared is not None:
            layer, place, mode = shared
            raise DesignError(
                f"a sublayer can have one serial and one parallel {cls.kind}, but two {mode} ones want {place} of "
                f"layer {layer}; make their layers or places disjoint, or make one of them "
                f"{'parallel' if mode == 'serial' else 'serial'}"
            )

    def describe_places(self) -> str:
        """Say where the bottlenecks are, after a size."""
        *before, last = (_WORDS[place] for place in self.at)
        places = f"{', '.join(before)} and {last}" if before else last
        return f"{'after' if self.mode == 'serial' else 'beside'} {places}"

    def describe_variants(self) -> list[str]:
        """Say which settings make the bottleneck another one than the plain one."""
        return ["gated"] * self.gate + ([] if self.scaling == 1 else [f"scaled by {self.scaling:g}"])

    @classmethod
    def attach_all(cls, blocks: Sequence[Self], site: Site) -> None:
        """Add one bottleneck for each layer, place and mode, and one sum for each layer and place."""
        new_gate = gate_maker(site) if any(block.gate for block in blocks) else None
        wanted: defaultdict[tuple[int, str], list[Self]] = defaultdict(list)
        for block in sorted(blocks, key=_comes_second):  # the order in which places draw their random numbers
            for at in block.sublayers(site.summary):
                wanted[at].append(block)
        for (layer, place), here in wanted.items():
            _attach_one(site, layer, place, here, new_gate)

    def make_bottleneck(
        self, site: Site, layer: int, place: str, new_gate: Callable[[int, int], Gate] | None
    ) -> "Bottleneck":
        """Return a new bottleneck for a sublayer.

        Args:
            site: Where it will be attached.
            layer: Index of the layer.
            place: Kind of the sublayer.
            new_gate: What `autopeft.models.gate.gate_maker` returns; only needed where `gate` is true.
        """
        n_in, n_out = self.widths(site.summary.layers[layer], place)
        down, up = self.make_maps(site, n_in, n_out)
        gate = new_gate(layer, n_in) if self.gate and new_gate is not None else None
        return Bottleneck(down, up, nn.ReLU() if self.activation == "relu" else nn.GELU(), self.scaling, gate)


def named(blocks: Iterable[Bottlenecked], place: str) -> dict[str, Bottlenecked]:
    """Return the blocks of one sublayer, the serial one first, by the name of the module that each has there."""
    return {
        f"autopeft_{block.kind}_{place}" + (f"_{block.mode}" if number else ""): block
        for number, block in enumerate(sorted(blocks, key=_comes_second))
    }


def _comes_second(block: BottleneckTechnique) -> bool:
    return block.mode == "parallel"


def _attach_one(
    site: Site,
    layer: int,
    place: str,
    blocks: Sequence[BottleneckTechnique],
    new_gate: Callable[[int, int], Gate] | None,
) -> None:
    """Add the bottlenecks of one sublayer: a serial one, a parallel one, or both in this order."""
    summary = site.summary.layers[layer]
    bottlenecks: dict[str, nn.Module] = {}
    found = SublayerInput()
    for name, block in named(blocks, place).items():
        site.add(summary.path, name, block.make_bottleneck(site, layer, place, new_gate))
        bottlenecks[block.mode] = site.module(f"{summary.path}.{name}")  # an export's may be folded
        if block.mode == "parallel":
            found.watch(site, summary, block.maps(summary, place))

    def add(_module: nn.Module, _args: Any, hidden: torch.Tensor) -> torch.Tensor:
        total = hidden
        for mode, bottleneck in bottlenecks.items():
            total = total + bottleneck(hidden if mode == "serial" else found.take())
        return total

    site.hook(site.module(summary.roles[OUTPUT[place]].path), add)


class SublayerInput:
    """What the first map of a sublayer reads, from then until the last map ends.

    Of a map that a forward calls several times the first call counts: DeBERTa's query map reads positions too.
    """

    def __init__(self) -> None:
        # One tensor and not a list: a forward that stops half-way (checkpointing) must not leave its input behind.
        self._read: torch.Tensor | None = None

    def watch(self, site: Site, layer: LayerSummary, maps: tuple[LinearSummary, LinearSummary] | None) -> None:
        """Keep what the first of a sublayer's maps reads, from every forward of its layer."""
        assert maps is not None
        site.pre_hook(site.module(layer.path), lambda *_: self.drop())
        site.pre_hook(site.module(maps[0].path), self.keep)

    def keep(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep a map's input, unless there is one; a forward pre-hook."""
        if self._read is None:
            self._read = args[0] if args else next(iter(kwargs.values()))

    def drop(self) -> None:
        """Forget what a forward that did not end has left."""
        self._read = None

    def take(self) -> torch.Tensor:
        """Return what was kept, and forget it.

        Raises:
            DesignError: The model computes the sublayer without calling its first map.
        """
        read, self._read = self._read, None
        if read is None:
            raise DesignError(
                "a parallel bottleneck reads what the first map of its sublayer reads, but this model never calls that "
                "map; take mode: serial"
            )
        return read


class Bottleneck(nn.Module):
    """s g(x) up(f(down(x))): maps [..., n_in] to [..., n_out], computing in fp32 or under autocast."""

    def __init__(
        self, down: nn.Module, up: nn.Module, activation: nn.Module, scaling: float, gate: Gate | None = None
    ) -> None:
        super().__init__()
        self.down = down
        self.up = up
        self.activation = activation
        self.scaling = scaling
        self.gate = gate

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return what the bottleneck adds, in the dtype of its input."""
        own_dtype = next(self.down.parameters()).dtype
        inner = self.activation(self.down(hidden.to(own_dtype)))
        added: torch.Tensor = self.scaling * self.up(inner).to(hidden.dtype)
        return added if self.gate is None else self.gate(hidden) * added
