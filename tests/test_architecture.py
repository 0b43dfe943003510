"""The shape of the code: imports point down, heavy packages have one gate, the public names are these."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import autopeft

ROOT = Path(autopeft.__file__).parent
MODULES = sorted(path for path in ROOT.rglob("*.py"))

# What each part may import of autopeft, besides itself.
VALUES = {"errors", "spec"}
MAY_IMPORT = {
    "errors": set(),
    "spec": {"errors"},
    "metrics": VALUES,
    "models": VALUES,
    "tasks": {*VALUES, "metrics", "models"},
    "training": {*VALUES, "models", "tasks"},
    "costs": {*VALUES, "models", "tasks", "training"},
    "study": VALUES,
    "executors": VALUES,
    "searching": {*VALUES, "study", "executors"},
    "results": {*VALUES, "metrics", "study"},
    "progress": VALUES,
    "interruption": set(),
    "doctor": {*VALUES, "models", "training", "executors"},
    "prediction": {*VALUES, "models", "tasks", "training", "study"},
    "limits": {*VALUES, "costs"},
    "prepared": {*VALUES, "costs", "tasks", "training", "study", "searching"},
    "preparation": {
        *VALUES,
        "models",
        "costs",
        "tasks",
        "training",
        "executors",
        "study",
        "searching",
        "limits",
        "prepared",
    },
    "outlook": {*VALUES, "prepared", "searching"},
    "api": {
        *VALUES,
        "models",
        "costs",
        "training",
        "executors",
        "study",
        "searching",
        "results",
        "progress",
        "interruption",
        "prepared",
        "preparation",
        "outlook",
    },
    "__main__": {"cli"},
    "cli": {
        *VALUES,
        "api",
        "costs",
        "prediction",
        "prepared",
        "preparation",
        "outlook",
        "study",
        "searching",
        "results",
        "progress",
        "doctor",
    },
    "__init__": {*VALUES, "api", "prediction", "preparation", "outlook", "results"},
}
# Who may import a heavy package: a part, or one module of it.
GATES = {
    "optuna": {"study", "searching", "results/dashboard.py", "results/dashboard_files.py"},
    "sqlalchemy": {"study"},
    "psycopg": set(),
    "optuna_dashboard": {"results/dashboard.py"},
    "moocore": {"study"},
    "fsspec": {"study/address.py"},
    "peft": {"models"},
    "bitsandbytes": {"models"},
    "ray": {"executors"},
    "transformers": {"models", "costs/generation.py", "tasks", "training"},
    "torch": {"models", "costs", "tasks", "training", "prediction", "doctor"},
    "datasets": {"tasks"},
    "plotly": {"results"},
    "matplotlib": {"results", "costs/plot.py"},
}


def part(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Return every module that a file imports, inside functions and type-checking blocks too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


def imports_at_the_top(path: Path) -> set[str]:
    """Return every module that a file imports when it is imported itself."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    own = part(path)
    for name in imports(path):
        package, _, rest = name.partition(".")
        if package == "autopeft" and rest:
            other = rest.partition(".")[0]
            assert other == own or other in MAY_IMPORT[own], f"{own} must not import autopeft.{rest}"
        elif package in GATES:
            module = path.relative_to(ROOT).as_posix()
            assert {own, module} & GATES[package], f"{module} must not import {package}"


@pytest.mark.parametrize("package", ["peft", "bitsandbytes"])
def test_peft_and_bitsandbytes_have_one_gate_module(package: str) -> None:
    gates = [path.name for path in MODULES if any(name.partition(".")[0] == package for name in imports(path))]
    assert len(gates) == 1, f"{package} is imported by {gates}"


def test_the_two_arms_never_import_each_other() -> None:
    training, searching = {"models", "tasks", "costs", "training"}, {"study", "searching", "executors", "results"}
    for path in MODULES:
        other = searching if part(path) in training else training if part(path) in searching else set()
        found = {name.split(".")[1] for name in imports(path) if name.startswith("autopeft.")}
        assert not found & other, f"{path.relative_to(ROOT)} imports the other arm"


def test_no_part_imports_itself_in_a_circle() -> None:
    """Parts form layers; modules of one part may not need each other to be imported either."""
    graph = {
        f"autopeft.{'.'.join(path.relative_to(ROOT).with_suffix('').parts)}".removesuffix(".__init__"): {
            name for name in imports_at_the_top(path) if name.startswith("autopeft.")
        }
        for path in MODULES
    }
    sorter = TopologicalSorter({name: (found & graph.keys()) - {name} for name, found in graph.items()})
    sorter.prepare()  # raises CycleError


def test_values_and_help_stay_light() -> None:
    heavy = "{'torch', 'transformers', 'peft', 'optuna', 'optuna_dashboard', 'ray', 'datasets', 'pandas', 'plotly', "
    heavy += "'matplotlib', 'moocore'}"
    modules = [f"autopeft.spec.{path.stem}" for path in (ROOT / "spec").glob("*.py")]
    for imported in (", ".join(modules), "autopeft.cli"):
        code = f"import sys, {imported}; bad = {heavy} & set(sys.modules); assert not bad, bad"
        subprocess.run([sys.executable, "-c", code], check=True)


def test_the_public_surface() -> None:
    assert autopeft.__all__ == [
        "Block",
        "Budget",
        "Design",
        "DryRun",
        "EarlyStopping",
        "Estimate",
        "Event",
        "Head",
        "SearchResult",
        "SearchSpace",
        "Splits",
        "StudySpec",
        "Training",
        "estimate",
        "load",
        "merge",
        "open",
        "predict",
        "register",
        "search",
    ]
    for name in autopeft.__all__:
        assert getattr(autopeft, name).__doc__, f"autopeft.{name} has no docstring"
    assert callable(autopeft.estimate), "a subpackage of the same name would hide it"
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        autopeft.serach  # noqa: B018
