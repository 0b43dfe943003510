"""A search space: declared choices and conditions, from which designs are drawn.

A space is data. It is walked by `SearchSpace.draw`, which asks a `Chooser` for each choice that the
earlier ones leave open; a random number generator and an Optuna trial are both choosers, so that
every sampler sees the same parameters under the same names. The grammar is in search_spaces/README.md.
"""

import hashlib
import json
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from autopeft.errors import DesignError, SpaceError
from autopeft.spec.block import Block, Layers, make_block
from autopeft.spec.block_space import BlockSpace
from autopeft.spec.choices import AllLayers, AnyLayers, Choice, Groups, LastLayers, Param, SameAs
from autopeft.spec.design import Design, check_quantization
from autopeft.spec.learning_rates import HEAD, default_learning_rate
from autopeft.spec.model import ModelSummary
from autopeft.spec.space_size import count_assignments, layer_owner, smallest_blocks


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
class SearchSpace:
    """Choices of quantization, blocks and learning rates, and what every design must meet.

    Attributes:
        any_of: At least one of these entries must be used; empty for no such rule.
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
        used = [b for b in self.blocks if b.chosen_by_group == "use" or _pick(chooser, f"{b.name}.use", b.use, model)]
        layer_sets: dict[str, Layers] = {}
        blocks: dict[str, list[Block]] = {}
        violation = ""
        rates = {HEAD: self._rate(chooser, HEAD, self.head_learning_rate, model)}
        for space in used:
            try:
                made = self._draw_block(chooser, space, layer_sets, model)
            except DesignError as error:  # fields that exclude each other
                made, violation = [], f"{space.name}: {error}"
            if made:
                blocks[space.name] = made
                if space.kind not in rates:
                    rates[space.kind] = self._rate(chooser, space.kind, space.learning_rate, model)
        design = Design(blocks=tuple(b for made in blocks.values() for b in made), quantization=quantization)
        design = design.resolve(model)
        violation = violation or self._missing(blocks) or self.violation(design, model)
        return Draw(design=design, learning_rates=rates, violation=violation)

    def violation(self, design: Design, model: ModelSummary) -> str:
        """Return why a design is not of this space, or an empty string; `any_of` is for `draw` to say."""
        if self.stock_only and not design.exports_to_peft(model):
            return "require.export: peft"
        try:
            design.check(model)
        except DesignError as error:
            return str(error)
        return ""

    def _missing(self, names: Iterable[str]) -> str:
        """Return the requirement that a design of these entries breaks, or an empty string."""
        return f"require.any_of: {', '.join(self.any_of)}" if self.any_of and not set(self.any_of) & set(names) else ""

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
        of a block makes the size infinite. Assignments that break `any_of` are not counted; those that break another
        requirement, or a rule of the techniques, are.
        """
        count = count_assignments(self.blocks, self.any_of, model.n_layers)
        return count * self.quantization.count(model.n_layers)

    def check(self, model: ModelSummary) -> None:
        """Raise `SpaceError` where an option of the space is illegal on `model`, naming its key and line."""
        for quantization in self.quantization.extremes(model.n_layers):
            try:
                check_quantization(quantization, model)
            except DesignError as error:
                raise self.error("quantization", str(error)) from None
        for space in self.blocks:
            if isinstance(space.layers, LastLayers | Groups):
                try:
                    space.layers.check(model.n_layers)
                except ValueError as error:
                    raise self.error(f"blocks.{space.name}.layers", str(error)) from None
        for space in self.blocks:
            owner = layer_owner(space, self.blocks)
            assert not isinstance(owner.layers, SameAs), "an owner chooses its own layers"
            # In as few layers as the space allows: what is legal in some of its designs stays an option.
            needed = {**space.needed(model.n_layers), "layers": owner.layers.fewest(model.n_layers)}
            for name, param in space.fields.items():
                for option in param.extremes(model.n_layers):
                    if name == space.block.size_field and option == 0:
                        continue
                    self._check_option(space, name, {**needed, name: option}, model)
            if not space.fields:
                self._check_option(space, "use", needed, model)
            if isinstance(space.layers, Choice):
                for layers in space.layers.options:
                    self._check_option(space, "layers", {**needed, "layers": layers}, model)

    def smallest(self, model: ModelSummary) -> tuple[Design, ...]:
        """Return designs that are as small as the space allows: the candidates for its cheapest one."""
        candidates: dict[str, Design] = {}
        quantizations = self.quantization.extremes(model.n_layers)
        for blocks in smallest_blocks(self.blocks, self.any_of, model.n_layers):
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

    def _check_option(self, space: BlockSpace, name: str, settings: Mapping[str, Any], model: ModelSummary) -> None:
        try:
            make_block(space.kind, settings).check(model, "none")
        except DesignError as error:
            raise self.error(f"blocks.{space.name}.{name}", str(error)) from None

    def _rate(self, chooser: Chooser, kind: str, param: Param | None, model: ModelSummary) -> float:
        if param is None:
            return default_learning_rate(kind)
        return float(_pick(chooser, f"{kind}.learning_rate", param, model))

    def _draw_block(
        self, chooser: Chooser, space: BlockSpace, layer_sets: dict[str, Layers], model: ModelSummary
    ) -> list[Block]:
        if isinstance(space.layers, Groups):
            return _draw_groups(chooser, space, space.layers, model)
        settings = {name: _pick(chooser, f"{space.name}.{name}", param, model) for name, param in space.fields.items()}
        owner = layer_owner(space, self.blocks)
        if owner.name not in layer_sets:
            layer_sets[owner.name] = _pick_layers(chooser, owner, model)
        layers = layer_sets[owner.name]
        left_out = not layers or settings.get(str(space.block.size_field)) == 0
        return [] if left_out else [make_block(space.kind, {**settings, "layers": layers})]


def _draw_groups(chooser: Chooser, space: BlockSpace, rule: Groups, model: ModelSummary) -> list[Block]:
    """Draw the fields once, and for each group a size, or for a block without a size whether it is there."""
    own = space.chosen_by_group
    param = space.use if own == "use" else space.fields[own]
    shared = {
        name: _pick(chooser, f"{space.name}.{name}", choice, model)
        for name, choice in space.fields.items()
        if name != own
    }
    blocks = []
    for i, layers in rule.split(model.n_layers).items():
        value = _pick(chooser, f"{space.name}.{own}.{i}", param, model)
        if value:
            settings = shared if own == "use" else {**shared, own: value}
            blocks.append(make_block(space.kind, {**settings, "layers": layers}))
    return blocks


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


def _pick_layers(chooser: Chooser, owner: BlockSpace, model: ModelSummary) -> Layers:
    n = model.n_layers
    match owner.layers:
        case AllLayers():
            return "all"
        case AnyLayers():
            return tuple(i for i in range(n) if chooser.choice(f"{owner.name}.layers.{i}", (True, False)))
        case LastLayers(counts):
            return tuple(range(n - int(_pick(chooser, f"{owner.name}.layers.last", counts, model)), n))
        case Choice() as rule:
            picked: Layers = _pick(chooser, f"{owner.name}.layers", rule, model)
            return picked
    raise TypeError(f"no layers can be drawn from {owner.layers!r}")
