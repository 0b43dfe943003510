"""How Sphinx builds the site: `make docs`. Nothing is fetched while it builds."""

import re
import sys
import textwrap
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "autopeft"
author = "the authors of autopeft"
copyright = "2026, the authors of autopeft. Apache-2.0"  # noqa: A001 (Sphinx reads this name)
version = release = version_of("autopeft")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",  # the reference of Python, from docstrings
    "sphinx.ext.napoleon",  # that are written in Google's style
    "sphinx_click",  # the reference of the command line, from its help
    "reference_tables",  # keys of a study, metrics and costs: from the classes that hold them
]
exclude_patterns = ["_build"]
nitpicky = False

html_theme = "furo"
html_title = "autopeft"
html_show_sourcelink = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # a page that is included begins with a heading of its own

napoleon_custom_sections = [("Class attributes", "params_style"), "Source", "Omits"]
default_role = "literal"  # single backticks in docstrings are code
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True


def fences_to_directives(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Turn the fenced examples of docstrings into what reStructuredText understands."""
    text = re.sub(
        r"```python\n(.*?)```",
        lambda found: f".. code-block:: python\n\n{textwrap.indent(found[1], '    ')}",
        "\n".join(lines),
        flags=re.DOTALL,
    )
    lines[:] = text.split("\n")


def setup(app: Sphinx) -> None:
    """Read docstrings before napoleon does."""
    app.connect("autodoc-process-docstring", fences_to_directives, priority=400)
