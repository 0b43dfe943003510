"""YAML 1.2 read safely, with the line of every key at hand for errors."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from autopeft.errors import AutopeftError


@dataclass(frozen=True, kw_only=True)
class YamlFile:
    """The values of a YAML file and where they stood.

    Attributes:
        name: What errors call the file.
        values: Mappings, lists and scalars, as the reader made them.
    """

    name: str
    values: Any

    def plain(self) -> Any:
        """Return the values as plain dicts, lists and scalars."""
        return json.loads(json.dumps(self.values))

    def lines(self) -> dict[str, int]:
        """Return the line of every key, counted from 1, by its dotted path."""
        return dict(_lines("", self.values))

    def place(self, key: str) -> str:
        """Return `file, line N` for a dotted key; the line of its nearest parent where it has none."""
        lines = self.lines()
        while key and key not in lines:
            key = key.rpartition(".")[0]
        return f"{self.name}, line {lines[key]}" if key in lines else self.name


def _lines(prefix: str, node: Any) -> Iterator[tuple[str, int]]:
    position = getattr(node, "lc", None)
    if not isinstance(node, Mapping) or position is None:
        return
    for name, value in node.items():
        path = f"{prefix}.{name}" if prefix else str(name)
        yield path, position.key(name)[0] + 1
        yield from _lines(path, value)


def read_yaml(text: str, *, name: str, error: type[AutopeftError]) -> YamlFile:
    """Parse one YAML document; nothing in it can run code.

    Raises:
        AutopeftError: Of the class `error`: the text is not YAML, or its top level is no mapping.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        values = YAML(typ="rt", pure=True).load(text)
    except YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        place = f"{name}, line {mark.line + 1}" if mark is not None else name
        raise error(f"{place}: {getattr(problem, 'problem', None) or problem}") from None
    if not isinstance(values, Mapping):
        raise error(f"{name}: expected keys and values at the top level, but got {type(values).__name__}")
    return YamlFile(name=name, values=values)
