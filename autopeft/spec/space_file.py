"""Reading a search space from YAML; the grammar is in search_spaces/README.md.

An error names the file, the line, the key, what was expected and what stood there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from autopeft.errors import DesignError, SpaceError
from autopeft.spec.block import Block, block_class, block_kinds
from autopeft.spec.block_space import BlockSpace
from autopeft.spec.choices import (
    GROUP_SHAPES,
    AllLayers,
    AnyLayers,
    Choice,
    Groups,
    LastLayers,
    LayerRule,
    Param,
    Range,
    SameAs,
)
from autopeft.spec.design import QUANTIZATIONS
from autopeft.spec.learning_rates import HEAD, TABLE, prior
from autopeft.spec.location import is_file
from autopeft.spec.messages import echo, nearest, one_of, unknown_key
from autopeft.spec.space import SearchSpace
from autopeft.spec.yaml_file import YamlFile, read_yaml, read_yaml_file

_RANGE_KEYS = ("int", "float", "log")
_LAYERS = "all, a list of lists of layer numbers, {any: per_layer}, {last: ...}, {groups: 4} or {same_as: block}"
_EXPECTED = "expected a value, a list of options, or {int|float|log: [low, high]}"


def shipped_spaces() -> tuple[str, ...]:
    """Return the names of the spaces that ship with autopeft, sorted."""
    folder = files("autopeft.search_spaces")
    names = [file.name for file in folder.iterdir() if file.name.endswith(".yaml") and file.name != TABLE]
    return tuple(sorted(name.removesuffix(".yaml") for name in names))


def load_space(name: str) -> SearchSpace:
    """Read a space by its name in search_spaces/, or by a path to a YAML file.

    Raises:
        SpaceError: There is no such space, or its file breaks the grammar.
    """
    if name in shipped_spaces():
        text = (files("autopeft.search_spaces") / f"{name}.yaml").read_text(encoding="utf-8")
        return _Reader(read_yaml(text, name=f"{name}.yaml", error=SpaceError), name).space()
    path = Path(name)
    if is_file(path):
        return _Reader(read_yaml_file(path, error=SpaceError), path.stem).space()
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        raise SpaceError(
            f"space must be a file that exists, but got {echo(name)}; or name one of {', '.join(shipped_spaces())}"
        )
    raise SpaceError(
        f"space must be one of {', '.join(shipped_spaces())}, or a path to a YAML file, but got {echo(name)}"
        f"{nearest(name, shipped_spaces())}"
    )


def read_space(values: Mapping[str, Any], *, name: str) -> SearchSpace:
    """Read a space from the values of its YAML form. Raises SpaceError."""
    return _Reader(YamlFile(name=name, values=values), name).space()


class _Reader:
    """Reads one file; each method takes the key path it reads, so that errors can name it."""

    def __init__(self, file: YamlFile, name: str) -> None:
        self._file = file
        self._name = name

    def space(self) -> SearchSpace:
        values = self._mapping("", self._file.values, ("description", "quantization", "head", "blocks", "require"))
        entries = self._mapping("blocks", values.get("blocks") or {}, None)
        head = self._mapping("head", values.get("head") or {}, ("learning_rate",))
        require = self._mapping("require", values.get("require") or {}, ("any_of", "export"))
        blocks = tuple(self._block(str(name), value, tuple(entries)) for name, value in entries.items())
        self._check_same_as(blocks)
        return SearchSpace(
            name=self._name,
            quantization=self._quantization(values.get("quantization", "none")),
            head_learning_rate=self._rate("head.learning_rate", HEAD, head.get("learning_rate")),
            blocks=self._share_rates(blocks),
            any_of=self._any_of(require.get("any_of", ()), tuple(entries)),
            stock_only=self._export(require.get("export")),
            source=self._source(),
            lines=self._file.lines(),
        )

    def _source(self) -> dict[str, Any]:
        """Return the file's values with every prior written out: the table can change, a study's space must not."""
        values: dict[str, Any] = self._file.plain()
        blocks = values.get("blocks") or {}
        named = [
            (HEAD, values.get("head") or {}),
            *((entry.get("kind", name), entry) for name, entry in blocks.items()),
        ]
        for kind, entry in named:
            if entry.get("learning_rate") == "prior":
                entry["learning_rate"] = {"log": list(prior(kind).bounds(1))}
        return values

    def _quantization(self, value: Any) -> Param:
        if isinstance(value, Mapping) and "per_layer" in value:
            raise self._error(
                "quantization",
                "per_layer is reserved: a quantization for each layer cannot be searched yet; give a list such as "
                "[none, nf4], of which each design takes one for all layers",
            )
        param = self._param("quantization", value)
        self._options("quantization", param, QUANTIZATIONS)
        return param

    def _kind(self, name: str, value: Any) -> type[Block]:
        """Return the technique of an entry: what `kind` says, or else its name."""
        key = f"blocks.{name}"
        kind = value.get("kind", name) if isinstance(value, Mapping) else name
        try:
            block = block_class(str(kind))
        except DesignError as error:
            hint = "; an entry with a name of its own says its technique, such as kind: lora" if kind == name else ""
            raise self._error(f"{key}.kind" if kind != name else key, f"{error}{hint}") from None
        if kind != name and not name.isidentifier():
            raise self._error(key, f"an entry's name must be made of letters, digits and _, but got {echo(name)}")
        if kind != name and (name == HEAD or name in block_kinds()):
            raise self._error(
                key, f"an entry of kind {kind} must have a name of its own, such as {kind}_2, but got {echo(name)}"
            )
        return block

    def _block(self, name: str, value: Any, names: tuple[str, ...]) -> BlockSpace:
        key, block = f"blocks.{name}", self._kind(name, value)
        fields = [field for field in (*block.model_fields, *sorted(block.space_fields)) if field != "layers"]
        values = self._mapping(key, value, ("kind", "use", "layers", "learning_rate", *fields))
        if block.whole_model and "layers" in values:
            raise self._error(
                f"{key}.layers", f"{block.kind} belongs to the model as a whole and has no layers: leave it out"
            )
        use = self._param(f"{key}.use", values.get("use", True))
        self._options(f"{key}.use", use, (True, False))
        params = self._fields(key, block, {field: values[field] for field in values if field in fields})
        space = BlockSpace(
            name=name,
            kind=block.kind,
            use=use,
            fields=params,
            layers=self._layers(f"{key}.layers", values.get("layers", "all"), names),
            learning_rate=self._rate(f"{key}.learning_rate", block.kind, values.get("learning_rate")),
        )
        own = space.chosen_by_group
        if own not in ("", "use", *params):
            raise self._error(f"{key}.layers", f"groups differ in their {own}: give it, such as {own}: [0, 4, 16]")
        return space

    def _fields(self, key: str, block: type[Block], values: Mapping[str, Any]) -> dict[str, Param]:
        """Read the choice of each field and try its options on the block, so that a typo is found here."""
        params = {name: self._param(f"{key}.{name}", value) for name, value in values.items()}
        for name, field in block.model_fields.items():
            if field.is_required() and name not in params:
                example = f", such as {name}: [4, 16, 64]" if name == block.size_field else ""
                raise self._error(key, f"{name} is required{example}")
        space = BlockSpace(name="", kind=block.kind, use=Choice((True,)), fields=params, layers=AllLayers())
        for name, param in params.items():
            for option in param.extremes(1):
                if not (name == block.size_field and option == 0):
                    self._try(f"{key}.{name}", block, {**space.needed(1), name: option}, option)
        return params

    def _try(self, key: str, block: type[Block], settings: Mapping[str, Any], option: Any) -> None:
        try:
            block.model_validate(settings)
        except ValueError as error:
            details: list[Any] = getattr(error, "errors", list)()
            message = details[0]["msg"].removeprefix("Value error, ") if details else str(error)
            raise self._error(key, f"{message}, but got {echo(_plain(option))}") from None

    def _share_rates(self, blocks: tuple[BlockSpace, ...]) -> tuple[BlockSpace, ...]:
        """Give all entries of one kind the learning rate that one of them has."""
        rates: dict[str, BlockSpace] = {}
        for space in blocks:
            if space.learning_rate is None:
                continue
            first = rates.setdefault(space.kind, space)
            if first.learning_rate != space.learning_rate:
                raise self._error(
                    f"blocks.{space.name}.learning_rate",
                    f"all entries of kind {space.kind} share one learning rate, but {first.name} has another; "
                    "give it at one of them",
                )
        return tuple(
            replace(space, learning_rate=rates[space.kind].learning_rate) if space.kind in rates else space
            for space in blocks
        )

    def _param(self, key: str, value: Any) -> Param:
        if isinstance(value, Mapping):
            return self._range(key, value)
        if isinstance(value, Sequence) and not isinstance(value, str):
            if not value:
                raise self._error(key, "a choice must have at least one option, but got []")
            return Choice(tuple(tuple(option) if isinstance(option, list) else option for option in value))
        if value is None:
            raise self._error(key, f"{_EXPECTED}, but got nothing")
        return Choice((value,))

    def _range(self, key: str, value: Mapping[str, Any]) -> Range:
        named = [name for name in _RANGE_KEYS if isinstance(value.get(name), Sequence)]
        if len(named) != 1:
            raise self._error(
                key,
                f"{_EXPECTED}, but got {echo(_plain(value))}",
            )
        (name,) = named
        self._mapping(key, value, (name, "log"))
        bounds = list(value[name])
        if len(bounds) != 2 or not all(b == "n" or _is_number(b) for b in bounds):
            raise self._error(key, f"{name} must be two numbers, [low, high], but got {echo(_plain(bounds))}")
        log = name == "log" or bool(value.get("log", False))
        if name == "int" and not all(b == "n" or isinstance(b, int) for b in bounds):
            raise self._error(key, f"int must have whole bounds, but got {echo(_plain(bounds))}")
        low, high = bounds
        if _is_number(low) and _is_number(high) and not low <= high:
            raise self._error(key, f"low <= high must hold, but got low={low}, high={high}")
        if log and _is_number(low) and low <= 0:
            raise self._error(key, f"low > 0 must hold on a log scale, but got low={low}")
        return Range(low=low, high=high, log=log, integer=name == "int")

    def _rate(self, key: str, kind: str, value: Any) -> Param | None:
        if value is None:
            return None
        if value == "prior":
            return prior(kind)
        param = self._param(key, value)
        for rate in param.extremes(1):
            if not _is_number(rate) or rate <= 0:
                raise self._error(key, f"a learning rate must be prior or a number above 0, but got {echo(rate)}")
        return param

    def _layers(self, key: str, value: Any, names: tuple[str, ...]) -> LayerRule:
        if value == "all":
            return AllLayers()
        if isinstance(value, Sequence) and not isinstance(value, str):
            return self._layer_lists(key, value)
        if isinstance(value, Mapping) and "groups" in value:
            return self._groups(key, value)
        if isinstance(value, Mapping) and len(value) == 1:
            ((name, argument),) = value.items()
            match name:
                case "any" if argument == "per_layer":
                    return AnyLayers()
                case "last":
                    counts = self._param(f"{key}.last", argument)
                    if not all(_is_count(count) for count in counts.extremes(1)):
                        raise self._error(key, f"last must be whole numbers, but got {echo(_plain(argument))}")
                    return LastLayers(counts)
                case "same_as":
                    if argument not in names:
                        raise self._error(key, f"same_as {one_of(names, argument)}")
                    return SameAs(str(argument))
        raise self._error(key, f"expected {_LAYERS}, but got {echo(_plain(value))}")

    def _groups(self, key: str, value: Mapping[str, Any]) -> Groups:
        self._mapping(key, value, ("groups", "shape", "only"))
        number, shape, only = value["groups"], value.get("shape", "uniform"), value.get("only")
        if not _is_count(number) or number < 1:
            raise self._error(key, f"groups must be a whole number above 0, but got {echo(_plain(number))}")
        if shape not in GROUP_SHAPES:
            raise self._error(f"{key}.shape", f"shape {one_of(GROUP_SHAPES, _plain(shape))}")
        if only is None:
            return Groups(number, shape)
        listed = isinstance(only, list) and only and all(_is_count(i) and 0 <= i < number for i in only)
        if not listed or len(set(only)) < len(only):
            raise self._error(
                f"{key}.only",
                f"only must list groups, counted from 0 to {number - 1}, each once, but got {echo(_plain(only))}",
            )
        return Groups(number, shape, tuple(sorted(only)))

    def _layer_lists(self, key: str, value: Sequence[Any]) -> Choice:
        for option in value:
            if option != "all" and not (
                isinstance(option, list) and option and all(isinstance(i, int) for i in option)
            ):
                raise self._error(
                    key,
                    "a list of layers is a choice between lists such as [[0, 1], [4, 5]] or all, "
                    f"but got {echo(_plain(option))}",
                )
        return Choice(tuple(option if option == "all" else tuple(option) for option in value))

    def _check_same_as(self, blocks: tuple[BlockSpace, ...]) -> None:
        rules = {space.name: space.layers for space in blocks}
        for name, rule in rules.items():
            if isinstance(rule, SameAs) and isinstance(rules[rule.block], SameAs | Groups):
                raise self._error(
                    f"blocks.{name}.layers",
                    f"same_as must name a block that chooses its own layers, but {rule.block} does not",
                )

    def _any_of(self, value: Any, names: tuple[str, ...]) -> tuple[str, ...]:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise self._error("require.any_of", f"expected a list of blocks, but got {echo(_plain(value))}")
        for name in value:
            if name not in names:
                raise self._error("require.any_of", one_of(names, name))
        return tuple(value)

    def _export(self, value: Any) -> bool:
        if value not in (None, "peft"):
            raise self._error("require.export", f"must be peft, but got {echo(value)}")
        return bool(value == "peft")

    def _options(self, key: str, param: Param, known: Sequence[Any]) -> None:
        for option in param.extremes(1):
            if not any(option is k or (isinstance(k, str) and option == k) for k in known):
                raise self._error(
                    key,
                    one_of(known, _plain(option)),
                )

    def _mapping(self, key: str, value: Any, known: Sequence[str] | None) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            raise self._error(key, f"expected keys and values, but got {echo(_plain(value))}")
        for name in value:
            if known is not None and name not in known:
                path = f"{key}.{name}" if key else str(name)
                raise SpaceError(f"{self._file.place(path)}: {unknown_key(path, known)}")
        return value

    def _error(self, key: str, message: str) -> SpaceError:
        return SpaceError(f"{self._file.place(key)}: {key or 'the file'}: {message}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """Return lists and mappings without the YAML reader's own types, for messages."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
