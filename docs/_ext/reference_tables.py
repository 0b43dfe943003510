"""Tables of the reference that are made from autopeft's classes while the site is built.

    ```{keys} autopeft.StudySpec
    ```

lists the keys of a pydantic model: its fields with their defaults, and what its docstring says of each under
`Attributes:`. A key that the docstring leaves out is an error. `{objectives}` lists the metrics and the costs.
"""

import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from importlib import import_module
from typing import Any, Literal, get_args, get_origin

from docutils import nodes
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from autopeft.spec.objective import OBJECTIVES


def find(name: str) -> Any:
    """Return what `package.module.name` names; a module's attributes may be lazy."""
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """Return what a class says of each of its fields under `Attributes:`, in one line each."""
    section = re.search(r"^Attributes:\n((?:[ ]{4}.*\n?|\n)+)", inspect.getdoc(model) or "", flags=re.MULTILINE)
    entries = re.split(r"^(?=\w+: )", textwrap.dedent(section[1]) if section else "", flags=re.MULTILINE)
    pairs = (entry.split(": ", 1) for entry in entries if entry.strip())
    return {name: " ".join(text.split()) for name, text in pairs}


def literals(annotation: Any) -> Iterator[str]:
    """Yield the words that an annotation allows, those of nested ones too."""
    if get_origin(annotation) is Literal:
        yield from map(str, get_args(annotation))
    else:
        for inner in get_args(annotation):
            yield from literals(inner)


def is_required(model: type[BaseModel], name: str) -> bool:
    """Return whether a model refuses values without this one: a validator may fill in a field that has no default."""
    others = {other: "x" for other, field in model.model_fields.items() if field.is_required() and other != name}
    try:
        model.model_validate(others)
    except ValidationError as error:
        return any(each["type"] == "missing" and each["loc"] == (name,) for each in error.errors())
    return False


def default_of(field: FieldInfo) -> str:
    """Return a field's default as a study file would have it."""
    value = field.get_default(call_default_factory=True)
    if value is None or value is PydanticUndefined or value == {}:
        return "none"
    if isinstance(value, BaseModel):
        return "see below"
    if isinstance(value, dict):
        return f"`{json.dumps(value)}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def keys_table(model: type[BaseModel]) -> str:
    """Return the fields of a model as a table in Markdown.

    Raises:
        ValueError: The docstring does not say what a field is for.
    """
    said = meanings(model)
    if missing := [name for name in model.model_fields if name not in said and name != "type"]:
        raise ValueError(f"{model.__name__} must say under 'Attributes:' what these are for: {', '.join(missing)}")
    rows = ["| key | default | meaning |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        if name == "type":
            continue
        words = [f"`{word}`" for word in literals(field.annotation)]
        choice = f" Words: {', '.join(words)}." if len(words) > 1 else ""
        default = "required" if is_required(model, name) else default_of(field)
        rows.append(f"| `{name}` | {default} | {said[name].replace('|', chr(92) + '|')}{choice} |")
    return "\n".join(rows)


def objectives_table() -> str:
    """Return every metric and cost with its direction, as a table in Markdown."""
    rows = ["| name | meaning | kind | better |", "|---|---|---|---|"]
    for name, objective in OBJECTIVES.items():
        better = "higher" if objective.direction == "maximize" else "lower"
        rows.append(f"| `{name}` | {objective.label} | {objective.kind} | {better} |")
    return "\n".join(rows)


class Keys(SphinxDirective):
    """`{keys} package.Class`: the keys of a pydantic model."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        return self.parse_text_to_nodes(keys_table(find(self.arguments[0])))


class Objectives(SphinxDirective):
    """`{objectives}`: every metric and cost."""

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        return self.parse_text_to_nodes(objectives_table())


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives."""
    app.add_directive("keys", Keys)
    app.add_directive("objectives", Objectives)
    return {"parallel_read_safe": True}
