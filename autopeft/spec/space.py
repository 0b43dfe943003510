"""A search space: declared choices and conditions, from which designs are drawn.

A space is data. It is walked by `SearchSpace.draw`, which asks a `Chooser` for each choice that the
earlier ones leave open; a random number generator and an Optuna trial are both choosers, so that
every sampler sees the same parameters under the same names. The grammar is in search_spaces/README.md.
"""

import hashlib
import itertools
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from autopeft.errors import DesignError, SpaceError
from autopeft.spec.block import Block, Layers, block_class, make_block
from autopeft.spec.choices import AllLayers, AnyLayers, Choice, Groups, LastLayers, LayerRule, OwnLayers, Param, SameAs
from autopeft.spec.design import Design
from autopeft.spec.model import ModelSummary

DEFAULT_HEAD_LEARNING_RATE = 1e-3
"""Rate of the new modules where a space gives none."""


class Chooser(Protocol):
    """Whatever answers the choices of a space, by parameter name."""

    def choice(self, name: str, options: Sequence[Any]) -> Any:
        """Return one of the options."""

    def integer(self, name: str, low: int, high: int, *, log: bool) -> int:
        """Return an integer in [low, high]."""

    def real(self, name: str, low: float, high: float, *, log: bool) -> float:
        """Return a number in [low, high]."""


@dataclass(frozen=True)
class RandomChooser:
    """Draws uniformly (on the log scale where asked) from a `random.Random`."""

    rng: random.Random

    def choice(self, name: str, options: Sequence[Any]) -> Any:
        """Return one of the options."""
        return self.rng.choice(options)

    def integer(self, name: str, low: int, high: int, *, log: bool) -> int:
        """Return an integer in [low, high]."""
        if log:
            return min(high, int(math.exp(self.rng.uniform(math.log(low), math.log(high + 1)))))
        return self.rng.randint(low, high)

    def real(self, name: str, low: float, high: float, *, log: bool) -> float:
        """Return a number in [low, high]."""
        return math.exp(self.rng.uniform(math.log(low), math.log(high))) if log else self.rng.uniform(low, high)


@dataclass(frozen=True, kw_only=True)
class Draw:
    """A design drawn from a space, with its learning rates by block kind and for `head`.

    Attributes:
        violation: The requirement of the space that the draw breaks, or an empty string.
    """

    design: Design
    learning_rates: Mapping[str, float]
    violation: str = ""


@dataclass(frozen=True, kw_only=True)
class BlockSpace:
    """The choices of one block: whether it is used, its fields, its layers, its learning rate."""

    kind: str
    use: Param
    fields: Mapping[str, Param]
    layers: LayerRule
    learning_rate: Param | None = None

    @property
    def block(self) -> type[Block]:
        """Return the technique."""
        return block_class(self.kind)

    @property
    def size(self) -> Param | None:
        """Return the choice of the block's size, or None where the technique has no size."""
        return None if self.block.size_field is None else self.fields[self.block.size_field]

    @property
    def any_size(self) -> dict[str, Any]:
        """Return settings with which a block can be made to try another one."""
        return {} if self.block.size_field is None else {self.block.size_field: 1}


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """Choices of quantization, blocks and learning rates, and what every design must meet.

    Attributes:
        any_of: At least one of these blocks must be used; empty for no such rule.
        stock_only: Only designs that stock PEFT can load.
        source: The file's values as they were read; what `to_dict` returns.
    """

    name: str
    quantization: Param
    head_learning_rate: Param | None
    blocks: tuple[BlockSpace, ...]
    any_of: tuple[str, ...] = ()
    stock_only: bool = False
    source: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    lines: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def load(cls, name: str) -> "SearchSpace":
        """Read a space by name (a file that ships with autopeft) or by path. Raises SpaceError."""
        from autopeft.spec.space_file import load_space

        return load_space(name)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, name: str = "space") -> "SearchSpace":
        """Read a space from the values of its YAML form. Raises SpaceError."""
        from autopeft.spec.space_file import read_space

        return read_space(values, name=name)

    def to_dict(self) -> dict[str, Any]:
        """Return the values of the YAML form; `from_dict` rebuilds an equal space from them."""
        return json.loads(json.dumps(self.source))  # type: ignore[no-any-return]

    @property
    def fingerprint(self) -> str:
        """Return a SHA-256 that changes where the choices or conditions do."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def draw(self, chooser: Chooser, model: ModelSummary) -> Draw:
        """Ask `chooser` for one design on `model`, in canonical form."""
        quantization = _pick(chooser, "quantization", self.quantization, model)
        used = [b for b in self.blocks if _pick(chooser, f"{b.kind}.use", b.use, model)]
        layer_sets: dict[str, Layers] = {}
        blocks: list[Block] = []
        rates = {"head": self._rate(chooser, "head", self.head_learning_rate, DEFAULT_HEAD_LEARNING_RATE, model)}
        for space in used:
            made = self._draw_block(chooser, space, layer_sets, model)
            if made:
                blocks += made
                default = space.block.default_learning_rate
                rates[space.kind] = self._rate(chooser, space.kind, space.learning_rate, default, model)
        design = Design(blocks=tuple(blocks), quantization=quantization).resolve(model)
        return Draw(design=design, learning_rates=rates, violation=self.violation(design, model))

    def violation(self, design: Design, model: ModelSummary) -> str:
        """Return the requirement that a design breaks, or an empty string."""
        if self.any_of and not set(self.any_of) & set(design.kinds):
            return f"require.any_of: {', '.join(self.any_of)}"
        if self.stock_only and not design.exports_to_peft(model):
            return "require.export: peft"
        try:
            design.check(model)
        except DesignError as error:
            return str(error)
        return ""

    def sample(self, model: ModelSummary, seed: int) -> Draw:
        """Draw at random until the requirements hold.

        Raises:
            SpaceError: 10,000 draws in a row broke them.
        """
        chooser = RandomChooser(random.Random(seed))
        for _ in range(10_000):
            draw = self.draw(chooser, model)
            if not draw.violation:
                return draw
        raise SpaceError(
            f"some design of the space {self.name} must meet its requirements, but 10,000 draws did not; "
            f"the last one broke {draw.violation}"
        )

    def size(self, model: ModelSummary) -> float:
        """Return how many assignments of the discrete choices the space has on `model`.

        Learning rates do not count; a block that is not used has one assignment; a continuous choice
        of a block makes the size infinite. Requirements other than `any_of` are not subtracted.
        """
        total = 0.0
        for pattern in itertools.product(*(_options_of_use(b.use) for b in self.blocks)):
            used = [b for b, use in zip(self.blocks, pattern, strict=True) if use]
            if self.any_of and not {b.kind for b in used} & set(self.any_of):
                continue
            owners = dict(self._owner(b) for b in used)
            total += math.prod(
                [
                    *(_block_count(b, model) for b in used),
                    *(rule.count(model.n_layers) for rule in owners.values()),
                ]
            )
        size = total * self.quantization.count(model.n_layers)
        return size if math.isinf(size) else int(size)

    def check(self, model: ModelSummary) -> None:
        """Raise `SpaceError` where an option of the space is illegal on `model`, naming its key and line."""
        for space in self.blocks:
            for name, param in space.fields.items():
                for option in param.extremes(model.n_layers):
                    if name == space.block.size_field and option == 0:
                        continue
                    self._check_option(space.kind, name, {**space.any_size, name: option}, model)
            if space.block.size_field is None:
                self._check_option(space.kind, "use", {}, model)
            if isinstance(space.layers, LastLayers | Groups):
                try:
                    space.layers.check(model.n_layers)
                except ValueError as error:
                    raise self.error(f"blocks.{space.kind}.layers", str(error)) from None
            elif isinstance(space.layers, Choice):
                for layers in space.layers.options:
                    self._check_option(space.kind, "layers", {**space.any_size, "layers": layers}, model)

    def smallest(self, model: ModelSummary) -> tuple[Design, ...]:
        """Return designs that are as small as the space allows: the candidates for its cheapest one."""
        candidates: dict[str, Design] = {}
        quantizations = self.quantization.extremes(model.n_layers)
        for pattern in itertools.product(*(_options_of_use(b.use) for b in self.blocks)):
            used = [b for b, use in zip(self.blocks, pattern, strict=True) if use]
            options = [_smallest_blocks(b, self._owner(b)[1], model) for b in used]
            for blocks in itertools.product(*options):
                for quantization in quantizations:
                    design = Design(blocks=blocks, quantization=quantization).resolve(model)
                    if not self.violation(design, model):
                        candidates.setdefault(design.key, design)
        return tuple(candidates.values())

    def error(self, key: str, message: str) -> SpaceError:
        """Make an error that names the key, and the line where the space came from a file."""
        line = next((self.lines[k] for k in (key, key.rpartition(".")[0]) if k in self.lines), None)
        place = f"{self.name}.yaml, line {line}" if line is not None else "space"
        return SpaceError(f"{place}: {key}: {message}")

    def _check_option(self, kind: str, name: str, settings: Mapping[str, Any], model: ModelSummary) -> None:
        try:
            make_block(kind, settings).check(model, "none")
        except DesignError as error:
            raise self.error(f"blocks.{kind}.{name}", str(error)) from None

    def _owner(self, space: BlockSpace) -> tuple[str, OwnLayers]:
        """Return the block that chooses the layers of this one, itself or the one it shares with, and the rule."""
        while isinstance(space.layers, SameAs):
            shared = space.layers.block
            space = next(b for b in self.blocks if b.kind == shared)
        return space.kind, space.layers

    def _rate(self, chooser: Chooser, kind: str, param: Param | None, default: float, model: ModelSummary) -> float:
        return default if param is None else float(_pick(chooser, f"{kind}.learning_rate", param, model))

    def _draw_block(
        self, chooser: Chooser, space: BlockSpace, layer_sets: dict[str, Layers], model: ModelSummary
    ) -> list[Block]:
        if isinstance(space.layers, Groups):
            return self._draw_groups(chooser, space, space.layers, model)
        settings = {name: _pick(chooser, f"{space.kind}.{name}", param, model) for name, param in space.fields.items()}
        owner, rule = self._owner(space)
        if owner not in layer_sets:
            layer_sets[owner] = _pick_layers(chooser, owner, rule, model)
        layers = layer_sets[owner]
        left_out = not layers or (space.block.size_field is not None and settings[space.block.size_field] == 0)
        return [] if left_out else [make_block(space.kind, {**settings, "layers": layers})]

    def _draw_groups(self, chooser: Chooser, space: BlockSpace, rule: Groups, model: ModelSummary) -> list[Block]:
        size_field = space.block.size_field
        assert size_field is not None, "a space file gives groups to techniques with a size only"
        settings = {
            name: _pick(chooser, f"{space.kind}.{name}", param, model)
            for name, param in space.fields.items()
            if name != size_field
        }
        sizes = [
            (_pick(chooser, f"{space.kind}.{size_field}.{i}", space.fields[size_field], model), layers)
            for i, layers in enumerate(rule.split(model.n_layers))
        ]
        return [
            make_block(space.kind, {**settings, size_field: size, "layers": layers})
            for size, layers in sizes
            if size != 0
        ]


def _pick(chooser: Chooser, name: str, param: Param, model: ModelSummary) -> Any:
    """Ask for one value; a choice of one option is a constant, and no parameter."""
    if isinstance(param, Choice):
        if len(param.options) == 1:
            return param.options[0]
        labels = [_label(option) for option in param.options]
        return param.options[labels.index(chooser.choice(name, labels))]
    low, high = param.bounds(model.n_layers)
    if low == high:
        return low
    if param.integer:
        return chooser.integer(name, int(low), int(high), log=param.log)
    return chooser.real(name, low, high, log=param.log)


def _label(option: Any) -> Any:
    """Return what Optuna can store for an option: lists become `a+b`."""
    return "+".join(map(str, option)) if isinstance(option, tuple) else option


def _pick_layers(chooser: Chooser, kind: str, rule: OwnLayers, model: ModelSummary) -> Layers:
    n = model.n_layers
    match rule:
        case AllLayers():
            return "all"
        case AnyLayers():
            return tuple(i for i in range(n) if chooser.choice(f"{kind}.layers.{i}", (True, False)))
        case LastLayers():
            return tuple(range(n - int(_pick(chooser, f"{kind}.layers.last", rule.counts, model)), n))
        case Choice():
            picked: Layers = _pick(chooser, f"{kind}.layers", rule, model)
            return picked
    raise TypeError(f"no layers can be drawn from {rule!r}")


def _options_of_use(use: Param) -> tuple[bool, ...]:
    return tuple(use.options) if isinstance(use, Choice) else (True,)


def _block_count(space: BlockSpace, model: ModelSummary) -> float:
    n = model.n_layers
    counts = math.prod(param.count(n) for name, param in space.fields.items() if name != space.block.size_field)
    if space.size is None:
        return counts
    size = space.size.count(n)
    return counts * (size ** len(space.layers.split(n)) if isinstance(space.layers, Groups) else size)


def _smallest_fields(space: BlockSpace, model: ModelSummary) -> dict[str, Any]:
    """Return the first option of each field, and the smallest size above 0."""
    fields = {name: param.extremes(model.n_layers)[0] for name, param in space.fields.items()}
    if space.size is None:
        return fields
    sizes = [option for option in space.size.extremes(model.n_layers) if option]
    return {**fields, str(space.block.size_field): min(sizes, default=1)}


def _smallest_blocks(space: BlockSpace, rule: OwnLayers, model: ModelSummary) -> list[Block]:
    """Return a block for each set of places that could be the cheapest: the smallest size in the fewest layers."""
    base = _smallest_fields(space, model)
    open_fields = {
        name: param.extremes(model.n_layers) for name, param in space.fields.items() if name in ("roles", "at")
    }
    leaves_out = space.size is not None and 0 in space.size.extremes(model.n_layers)
    every_group = isinstance(rule, Groups) and not leaves_out
    layers = "all" if every_group else rule.fewest(model.n_layers)
    return [
        make_block(space.kind, {**base, **dict(zip(open_fields, options, strict=True)), "layers": layers})
        for options in itertools.product(*open_fields.values())
    ]
