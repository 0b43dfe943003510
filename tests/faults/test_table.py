"""The table of faults in the documentation names tests that are there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "faults.md"
HEADING = "\n## When something dies\n"


def rows() -> list[list[str]]:
    """Return the cells of each row of the table."""
    section = PAGE.read_text(encoding="utf-8").partition(HEADING)[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_each_fault_has_tests_that_are_there() -> None:
    assert len(rows()) >= 18, f"{PAGE.name} must have its table of faults under {HEADING.strip()!r}"
    for fault, seen, _, code, tests in rows():
        assert fault
        assert seen
        assert code in ("", "2", "3", "5", "6", "130", "137", "143"), f"{fault}: {code}"
        names = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", tests)
        assert names, f"{fault}: no test is named"
        for file, name in names:
            tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file}::{name}"
