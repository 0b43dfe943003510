"""The shape of the code: imports point down, heavy packages have one gate, the public names are these."""

import ast
import subprocess
import sys
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
    "estimation": {*VALUES, "models", "tasks"},
    "training": {*VALUES, "models", "tasks"},
    "costs": {*VALUES, "models", "estimation", "tasks", "training"},
    "study": VALUES,
    "executors": VALUES,
    "searching": {*VALUES, "study", "executors"},
    "results": {*VALUES, "metrics", "study"},
    "progress": VALUES,
    "interruption": set(),
    "doctor": {*VALUES, "models", "training", "executors"},
    "prediction": {*VALUES, "models", "tasks", "training", "study"},
    "limits": {*VALUES, "estimation"},
    "preparation": {*VALUES, "models", "estimation", "tasks", "training", "executors", "study", "searching", "limits"},
    "outlook": {*VALUES, "preparation", "searching"},
    "api": {
        *VALUES,
        "models",
        "costs",
        "estimation",
        "training",
        "executors",
        "study",
        "searching",
        "results",
        "progress",
        "interruption",
        "preparation",
        "outlook",
    },
    "__main__": {"cli"},
    "cli": {
        *VALUES,
        "api",
        "costs",
        "prediction",
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
    "transformers": {"models", "estimation/generation.py", "tasks", "training"},
    "torch": {"models", "estimation", "tasks", "training", "prediction", "doctor"},
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
    training, searching = {"estimation", "tasks", "training", "models"}, {"study", "searching", "executors", "results"}
    for arm, other in ((training, searching), (searching, training)):
        for name in arm:
            assert not MAY_IMPORT[name] & other


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
