"""The page that lists architectures, docs/architectures.md: `python -m tests.architectures.page` writes it."""

import sys
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

import transformers

from tests.architectures import tiny
from tests.architectures.contract import SPACE, ask

PATH = Path(__file__).parents[2] / "docs" / "architectures.md"
_TITLES = {"text-classification": "Text classification", "causal-lm": "Causal language models"}
_HEAD = f"""\
# Architectures

This page lists every architecture that transformers {transformers.__version__} builds for the two tasks. A command
writes it; with model types as arguments, it asks those again alone:

```bash
python -m tests.architectures.page
```

A test in `tests/architectures/` makes a tiny model of each one. It runs a search with nothing but the model and the
data, loads what the search exports, and predicts with it. So "works" means a default search: the space `{SPACE}` and
the default yardstick. "Refused" means one line before any training; the line is in the table.

The last column names the techniques of the default space that autopeft leaves out on the architecture. A search says
so, too. The model type is what `config.json` calls `model_type`.
"""


def render(known: str = "", again: Collection[str] = ()) -> str:
    """Return the page.

    Args:
        known: The page as it is, whose rows are kept.
        again: Model types that are asked again all the same.
    """
    rows = _rows(known)
    return "\n".join([_HEAD, *(_section(task, rows.get(task, {}), again) for task in tiny.TASKS)])


def listed(page: str) -> dict[str, set[str]]:
    """Return the model types that a page lists, by task."""
    return {task: set(rows) for task, rows in _rows(page).items()}


def _rows(page: str) -> dict[str, dict[str, str]]:
    """Return the rows of a page by task and model type."""
    found: dict[str, dict[str, str]] = {}
    for section in page.split("\n## ")[1:]:
        title, _, body = section.partition("\n")
        task = next(task for task, name in _TITLES.items() if title.startswith(name))
        found[task] = {line.split("`")[1]: line for line in body.splitlines() if line.startswith("| `")}
    return found


def _section(task: str, known: Mapping[str, str], again: Collection[str]) -> str:
    rows = [
        known[model_type] if model_type in known and model_type not in again else _row(task, model_type)
        for model_type in sorted(tiny.architectures(task))
    ]
    n_works = sum("| works" in row for row in rows)
    head = [f"## {_TITLES[task]}", "", f"`task: {task}`. {n_works} of {len(rows)} architectures work.", ""]
    return "\n".join([*head, "| model type | default search | not available |", "|---|---|---|", *rows, ""])


def _row(task: str, model_type: str) -> str:
    if model_type in tiny.NOT_BUILT:
        return f"| `{model_type}` | not tried: {tiny.NOT_BUILT[model_type]} | |"
    with tempfile.TemporaryDirectory() as folder:
        try:
            answer = ask(task, model_type, Path(folder))
        except Exception as error:
            return f"| `{model_type}` | fails: {type(error).__name__} {str(error).splitlines()[:1]} | |"
    reason = answer.refusal or tiny.REFUSED_LATER[task].get(model_type, "")
    refused = reason.replace("|", "\\|").replace("<", "&lt;")
    missing = ", ".join(f"`{kind}`" for kind in answer.left_out)
    works = "works, but does not write" if task == "causal-lm" and model_type in tiny.CANNOT_WRITE else "works"
    return f"| `{model_type}` | {f'refused: {refused}' if refused else works} | {missing} |"


if __name__ == "__main__":
    PATH.parent.mkdir(exist_ok=True)
    before = PATH.read_text(encoding="utf-8") if sys.argv[1:] and PATH.exists() else ""
    PATH.write_text(render(before, sys.argv[1:]), encoding="utf-8")
    sys.stdout.write(f"{PATH}\n")
