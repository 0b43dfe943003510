"""Reading a search space from YAML; the grammar is in search_spaces/README.md.

An error names the file, the line, the key, what was expected and what stood there.
"""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from autopeft.errors import DesignError, SpaceError
from autopeft.spec.block import Block, block_class
from autopeft.spec.choices import AllLayers, AnyLayers, Choice, Groups, LastLayers, LayerRule, Param, Range, SameAs
from autopeft.spec.design import QUANTIZATIONS
from autopeft.spec.messages import nearest, one_of, unknown_key
from autopeft.spec.space import BlockSpace, SearchSpace
from autopeft.spec.yaml_file import YamlFile, read_yaml

_RANGE_KEYS = ("int", "float", "log")
_EXPECTED = "expected a value, a list of options, or {int|float|log: [low, high]}"


def shipped_spaces() -> tuple[str, ...]:
    """Return the names of the spaces that ship with autopeft, sorted."""
    folder = files("autopeft.search_spaces")
    return tuple(sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")))


def load_space(name: str) -> SearchSpace:
    """Read a space by its name in search_spaces/, or by a path to a YAML file.

    Raises:
        SpaceError: There is no such space, or its file breaks the grammar.
    """
    if name in shipped_spaces():
        text = (files("autopeft.search_spaces") / f"{name}.yaml").read_text(encoding="utf-8")
        return _Reader(read_yaml(text, name=f"{name}.yaml", error=SpaceError), name).space()
    path = Path(name)
    if path.is_file():
        return _Reader(read_yaml(path.read_text(encoding="utf-8"), name=str(path), error=SpaceError), path.stem).space()
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        raise SpaceError(
            f"space must be a file that exists, but got {name!r}; or name one of {', '.join(shipped_spaces())}"
        )
    raise SpaceError(
        f"space must be one of {', '.join(shipped_spaces())}, or a path to a YAML file, but got {name!r}"
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
        kinds = self._mapping("blocks", values.get("blocks") or {}, None)
        head = self._mapping("head", values.get("head") or {}, ("learning_rate",))
        require = self._mapping("require", values.get("require") or {}, ("any_of", "export"))
        quantization = self._param("quantization", values.get("quantization", "none"))
        self._options("quantization", quantization, QUANTIZATIONS)
        space = SearchSpace(
            name=self._name,
            quantization=quantization,
            head_learning_rate=self._rate("head.learning_rate", head.get("learning_rate")),
            blocks=tuple(self._block(str(kind), value, tuple(kinds)) for kind, value in kinds.items()),
            any_of=self._any_of(require.get("any_of", ()), tuple(kinds)),
            stock_only=self._export(require.get("export")),
            source=self._file.plain(),
            lines=self._file.lines(),
        )
        self._check_same_as(space)
        return space

    def _block(self, kind: str, value: Any, kinds: tuple[str, ...]) -> BlockSpace:
        key = f"blocks.{kind}"
        try:
            block = block_class(kind)
        except DesignError as error:
            raise self._error(key, str(error)) from None
        fields = [name for name in (*block.model_fields, *sorted(block.space_fields)) if name != "layers"]
        values = self._mapping(key, value, ("use", "layers", "learning_rate", *fields))
        if block.whole_model and "layers" in values:
            raise self._error(
                f"{key}.layers", f"{kind} belongs to the model as a whole and has no layers: leave it out"
            )
        use = self._param(f"{key}.use", values.get("use", True))
        self._options(f"{key}.use", use, (True, False))
        params = {name: self._field(f"{key}.{name}", block, name, values[name]) for name in fields if name in values}
        if block.size_field is not None and block.size_field not in params:
            raise self._error(key, f"{block.size_field} is required, such as {block.size_field}: [4, 16, 64]")
        layers = self._layers(f"{key}.layers", values.get("layers", "all"), kinds)
        if block.size_field is None and isinstance(layers, Groups):
            raise self._error(f"{key}.layers", f"groups differ in their size, but {kind} has none; take last or any")
        return BlockSpace(
            kind=kind,
            use=use,
            fields=params,
            layers=layers,
            learning_rate=self._rate(f"{key}.learning_rate", values.get("learning_rate")),
        )

    def _field(self, key: str, block: type[Block], name: str, value: Any) -> Param:
        """Read a field's choice and try each option on the block, so that a typo is found here."""
        param = self._param(key, value)
        for option in param.extremes(1):
            if name == block.size_field and option == 0:
                continue
            settings = {} if block.size_field is None else {block.size_field: 1}
            try:
                block.model_validate({**settings, name: option})
            except ValueError as error:
                details: list[Any] = getattr(error, "errors", list)()
                message = details[0]["msg"].removeprefix("Value error, ") if details else str(error)
                raise self._error(key, f"{message}, but got {_plain(option)!r}") from None
        return param

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
                f"{_EXPECTED}, but got {_plain(value)!r}",
            )
        (name,) = named
        self._mapping(key, value, (name, "log"))
        bounds = list(value[name])
        if len(bounds) != 2 or not all(b == "n" or _is_number(b) for b in bounds):
            raise self._error(key, f"{name} must be two numbers, [low, high], but got {_plain(bounds)!r}")
        log = name == "log" or bool(value.get("log", False))
        if name == "int" and not all(b == "n" or isinstance(b, int) for b in bounds):
            raise self._error(key, f"int must have whole bounds, but got {_plain(bounds)!r}")
        low, high = bounds
        if _is_number(low) and _is_number(high) and not low <= high:
            raise self._error(key, f"low <= high must hold, but got low={low}, high={high}")
        if log and _is_number(low) and low <= 0:
            raise self._error(key, f"low > 0 must hold on a log scale, but got low={low}")
        return Range(low=low, high=high, log=log, integer=name == "int")

    def _rate(self, key: str, value: Any) -> Param | None:
        if value is None:
            return None
        param = self._param(key, value)
        for rate in param.extremes(1):
            if not _is_number(rate) or rate <= 0:
                raise self._error(key, f"a learning rate must be a number above 0, but got {rate!r}")
        return param

    def _layers(self, key: str, value: Any, kinds: tuple[str, ...]) -> LayerRule:
        if value == "all":
            return AllLayers()
        if isinstance(value, Sequence) and not isinstance(value, str):
            return self._layer_lists(key, value)
        if isinstance(value, Mapping) and len(value) == 1:
            ((name, argument),) = value.items()
            match name:
                case "any" if argument == "per_layer":
                    return AnyLayers()
                case "last":
                    return LastLayers(self._param(f"{key}.last", argument))
                case "groups" if isinstance(argument, int) and not isinstance(argument, bool) and argument > 0:
                    return Groups(argument)
                case "same_as":
                    if argument not in kinds:
                        raise self._error(
                            key,
                            f"same_as {one_of(kinds, argument)}",
                        )
                    return SameAs(str(argument))
        raise self._error(
            key,
            "expected all, a list of lists of layer numbers, {any: per_layer}, {last: ...}, {groups: 4} "
            "or {same_as: block}, "
            f"but got {_plain(value)!r}",
        )

    def _layer_lists(self, key: str, value: Sequence[Any]) -> Choice:
        for option in value:
            if option != "all" and not (
                isinstance(option, list) and option and all(isinstance(i, int) for i in option)
            ):
                raise self._error(
                    key,
                    "a list of layers is a choice between lists such as [[0, 1], [4, 5]] or all, "
                    f"but got {_plain(option)!r}",
                )
        return Choice(tuple(option if option == "all" else tuple(option) for option in value))

    def _check_same_as(self, space: SearchSpace) -> None:
        rules = {block.kind: block.layers for block in space.blocks}
        for kind, rule in rules.items():
            if isinstance(rule, SameAs) and isinstance(rules[rule.block], SameAs | Groups):
                raise self._error(
                    f"blocks.{kind}.layers",
                    f"same_as must name a block that chooses its own layers, but {rule.block} does not",
                )

    def _any_of(self, value: Any, kinds: tuple[str, ...]) -> tuple[str, ...]:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise self._error("require.any_of", f"expected a list of blocks, but got {_plain(value)!r}")
        for kind in value:
            if kind not in kinds:
                raise self._error(
                    "require.any_of",
                    one_of(kinds, kind),
                )
        return tuple(value)

    def _export(self, value: Any) -> bool:
        if value not in (None, "peft"):
            raise self._error("require.export", f"must be peft, but got {value!r}")
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
            raise self._error(key, f"expected keys and values, but got {_plain(value)!r}")
        for name in value:
            if known is not None and name not in known:
                path = f"{key}.{name}" if key else str(name)
                raise SpaceError(f"{self._file.place(path)}: {unknown_key(path, known)}")
        return value

    def _error(self, key: str, message: str) -> SpaceError:
        return SpaceError(f"{self._file.place(key)}: {key or 'the file'}: {message}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """Return lists and mappings without the YAML reader's own types, for messages."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
