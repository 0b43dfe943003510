"""Every registered technique in a table: its fields, what it goes with, and how it is served.

Nothing here names a technique: the rows come from the registry, so that one from outside of the package has its row
too. A variant, a field with another value, has a row of its own where that changes what the table says.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from autopeft.spec.block import Block, block_class, block_kinds
from autopeft.spec.design import QUANTIZATIONS

BASES = tuple(name for name in QUANTIZATIONS if name != "none")
_TRIAL_SIZE = 4
"""A size to make a block with, where only its other settings matter."""


@dataclass(frozen=True, kw_only=True)
class TechniqueRow:
    """What is known of a technique, or of a variant of one, without a model.

    Attributes:
        variant: The setting that makes it another one, such as `dora: true`; empty for the technique as it comes.
        quantizations: Whether the base can be stored so, for each of `BASES`.
        not_with: The other kinds that it cannot go with.
        reasons: Why, by quantization or kind.
        starts_as_base: Whether the model answers as the base does until the first step.
        mergeable: Whether the trained block can be folded into the base's weights.
    """

    kind: str
    variant: str
    quantizations: dict[str, bool]
    not_with: tuple[str, ...]
    reasons: dict[str, str]
    starts_as_base: bool
    mergeable: bool

    @property
    def name(self) -> str:
        """Return the kind, and the variant in brackets."""
        return f"{self.kind} ({self.variant})" if self.variant else self.kind

    def by_reason(self) -> dict[str, list[str]]:
        """Return what the technique cannot go with, quantizations and kinds, by the reason."""
        found: dict[str, list[str]] = {}
        for other, reason in self.reasons.items():
            found.setdefault(reason, []).append(other)
        return found

    @property
    def answers(self) -> tuple[Any, ...]:
        """Return what two rows are compared by."""
        return self.quantizations, self.not_with, self.starts_as_base, self.mergeable


def technique_rows() -> list[TechniqueRow]:
    """Return a row for each technique, and one for each variant of it that the table tells apart."""
    rows = []
    for kind in block_kinds():
        plain = _make(block_class(kind), {})
        first = _row(plain, "")
        rows.append(first)
        for name, value in _variants(block_class(kind)):
            try:
                row = _row(_make(block_class(kind), {name: value}), f"{name}: {_plain(value)}")
            except ValidationError:
                continue  # a value that needs others
            if row.answers != first.answers:
                rows.append(row)
    return rows


def describe(kind: str) -> str:
    """Return what a technique is, in one line: the first of its module's docstring, or of its class's."""
    cls = block_class(kind)
    text = sys.modules[cls.__module__].__doc__ or cls.__doc__ or ""
    return text.strip().partition("\n")[0]


def fields(kind: str) -> dict[str, str]:
    """Return a technique's fields besides its layers, each with its default, or `required`."""
    cls = block_class(kind)
    found = {}
    for name, info in cls.model_fields.items():
        if name != "layers":
            found[name] = "required" if info.is_required() else _default(info)
    return found | dict.fromkeys(sorted(cls.space_fields), "in spaces alone")


def techniques_markdown() -> str:
    """Return the table of techniques with their fields, as search_spaces/README.md shows it."""
    lines = ["| block | what it is | fields (default) |", "|---|---|---|"]
    for kind in block_kinds():
        listed = ", ".join(f"`{name}` ({value})" if value else f"`{name}`" for name, value in fields(kind).items())
        layers = "" if not block_class(kind).whole_model else "; no layers"
        lines.append(f"| `{kind}` | {describe(kind)} | {listed or 'none: a switch'}{layers} |")
    return "\n".join(lines)


def combinations_markdown() -> str:
    """Return the table of combinations, and the reasons under it, as search_spaces/README.md shows them."""
    head = ["block", *BASES, "not with", "starts as the base", "merges"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    notes: dict[tuple[str, str], str] = {}  # one for each technique and reason, the plain technique before variants
    for row in technique_rows():
        cells = [f"`{row.kind}`" + (f" with `{row.variant}`" if row.variant else "")]
        cells += [_yes(allowed) for allowed in row.quantizations.values()]
        cells += [", ".join(f"`{kind}`" for kind in row.not_with), _yes(row.starts_as_base), _yes(row.mergeable)]
        lines.append("| " + " | ".join(cells) + " |")
        for reason, others in row.by_reason().items():
            named = ", ".join(f"`{other}`" for other in others)
            notes.setdefault((row.kind, reason), f"- {cells[0]} and {named}: {reason}.")
    return "\n".join([*lines, "", *notes.values()]).rstrip()


def _row(block: Block, variant: str) -> TechniqueRow:
    conflicts = dict(block.conflicts())
    backwards = [kind for kind in block_kinds() if block.kind in _make(block_class(kind), {}).conflicts()]
    not_with = {*backwards, *(other for other in conflicts if other not in QUANTIZATIONS)}
    return TechniqueRow(
        kind=block.kind,
        variant=variant,
        quantizations={name: name not in conflicts for name in BASES},
        not_with=tuple(sorted(not_with)),
        reasons=conflicts,
        starts_as_base=block.starts_as_base,
        mergeable=block.mergeable,
    )


def _make(cls: type[Block], settings: dict[str, Any]) -> Block:
    """Make a block of some size; where a technique needs more than that, without validation."""
    size = {} if cls.size_field is None else {cls.size_field: _TRIAL_SIZE}
    needed = {name for name, info in cls.model_fields.items() if info.is_required()}
    if needed <= {*size, *settings}:
        return cls(**{**size, **settings})
    return cls.model_construct(**{**dict.fromkeys(needed, ()), **size, **settings})


def _variants(cls: type[Block]) -> Iterator[tuple[str, Any]]:
    """Yield each field with each value besides its default, where there are few: switches and words."""
    for name, info in cls.model_fields.items():
        if name == "layers" or info.is_required():
            continue
        options = (False, True) if info.annotation is bool else _words(info)
        yield from ((name, option) for option in options if option != info.default)
    # A whole number above 1 where one is the default: several of something that there is one of otherwise.
    for name, info in cls.model_fields.items():
        if info.annotation is int and not info.is_required() and info.default == 1:
            yield name, _TRIAL_SIZE


def _words(info: FieldInfo) -> tuple[Any, ...]:
    return get_args(info.annotation) if get_origin(info.annotation) is Literal else ()


def _default(info: FieldInfo) -> str:
    value = info.get_default()
    return "" if value is None or repr(value) == "PydanticUndefined" else _plain(value)


def _plain(value: Any) -> str:
    """Write a value as YAML does."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_plain, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
