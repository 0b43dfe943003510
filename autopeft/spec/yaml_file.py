"""YAML 1.2 read safely, with limits, and with the line of every key at hand for errors."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autopeft.errors import AutopeftError

MAX_BYTES = 256 * 2**10
"""Of a file: the largest space that ships has 3 KiB."""
MAX_DEPTH = 32
"""Mappings and lists inside of each other."""
MAX_VALUES = 50_000
"""With every alias written out: a few lines of aliases to aliases would fill all memory."""


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


def is_too_deep(values: Any) -> bool:
    """Return whether mappings and lists stand more than `MAX_DEPTH` inside of each other."""
    level = [values]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for node in level
            if isinstance(node, Mapping | list | tuple)
            for inner in (node.values() if isinstance(node, Mapping) else node)
        ]
    return bool(level)


def _lines(prefix: str, node: Any) -> Iterator[tuple[str, int]]:
    position = getattr(node, "lc", None)
    if not isinstance(node, Mapping) or position is None:
        return
    for name, value in node.items():
        path = f"{prefix}.{name}" if prefix else str(name)
        if name in (position.data or ()):  # what a merge (<<) brought stands elsewhere
            yield path, position.key(name)[0] + 1
        yield from _lines(path, value)


def read_yaml_file(path: Path, *, error: type[AutopeftError]) -> YamlFile:
    """Read and parse a YAML file; see `read_yaml`.

    Raises:
        AutopeftError: Of the class `error`: the file cannot be read, is too large, or is no YAML in UTF-8.
    """
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise error(f"{path}: a YAML file may have {MAX_BYTES:,} bytes, but it has {size:,}; is it the right one?")
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as problem:
        raise error(f"{path}: must be text in UTF-8, but {problem.reason} at byte {problem.start}") from None
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror}") from None
    return read_yaml(text, name=str(path), error=error)


def read_yaml(text: str, *, name: str, error: type[AutopeftError], may_have_dates: bool = False) -> YamlFile:
    """Parse one YAML document; nothing in it can run code, and it takes no more time and memory than its text.

    Args:
        text: The document.
        name: What errors call it.
        error: Their class.
        may_have_dates: Whether it may hold values that JSON has not, such as dates; then it has no `plain` form.

    Raises:
        AutopeftError: Of the class `error`: the text is not YAML, its top level is no mapping, it is too large, too
            deep or has too many aliases, or it has values that JSON has not and may not have them.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    if len(text) > MAX_BYTES:
        raise error(f"{name}: a YAML text may have {MAX_BYTES:,} characters, but it has {len(text):,}")
    reader = YAML(typ="rt", pure=True)
    try:
        if complaint := _too_large(YAML(typ="rt", pure=True).parse(text)):
            raise error(f"{name}: {complaint}")
        values = reader.load(text)
    except YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        place = f"{name}, line {mark.line + 1}" if mark is not None else name
        raise error(f"{place}: {getattr(problem, 'problem', None) or problem}") from None
    except AutopeftError:
        raise
    except Exception as problem:  # the reader fails in many ways on values that are none: dates, tags, numbers
        raise error(f"{name}: has a value that cannot be read: {problem}") from None
    if not isinstance(values, Mapping):
        raise error(f"{name}: expected keys and values at the top level, but got {type(values).__name__}")
    if may_have_dates:
        return YamlFile(name=name, values=values)
    try:
        json.dumps(values)
    except (TypeError, ValueError, RecursionError) as problem:
        raise error(
            f"{name}: may hold numbers, texts, lists and keys with values, but {problem}; put dates in quotes"
        ) from None
    return YamlFile(name=name, values=values)


def _too_large(events: Iterator[Any]) -> str:
    """Return what is too large about a document, or an empty string; told from its events, before anything is built.

    Args:
        events: Of the reader: starts and ends of mappings and lists, scalars and aliases.
    """
    sizes = [0]  # values so far in each open mapping or list
    anchors: list[str | None] = []
    known: dict[str, int] = {}
    for event in events:
        kind = type(event).__name__
        anchor = getattr(event, "anchor", None)
        if kind in ("MappingStartEvent", "SequenceStartEvent"):
            sizes.append(1)
            anchors.append(anchor)
        elif kind in ("MappingEndEvent", "SequenceEndEvent"):
            size, own = sizes.pop(), anchors.pop()
            if own is not None:
                known[own] = size
            sizes[-1] += size
        elif kind == "ScalarEvent":
            sizes[-1] += 1
            if anchor is not None:
                known[anchor] = 1
        elif kind == "AliasEvent":
            if anchor in anchors:
                return f"*{anchor} stands inside of what it names"
            sizes[-1] += known.get(anchor or "", 1)
        if len(sizes) - 1 > MAX_DEPTH:
            return f"may be {MAX_DEPTH} levels deep at most"
        if sum(sizes) > MAX_VALUES:
            return f"may have {MAX_VALUES:,} values at most, with every alias written out"
    return ""
