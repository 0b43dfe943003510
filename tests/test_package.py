"""What the wheel holds: everything that an installed autopeft needs besides its code."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_wheel_holds_spaces_templates_and_types(tmp_path: Path) -> None:
    source = tmp_path / "source"  # a build leaves files beside what it builds, and the next one packs them again
    for name in ("autopeft", "search_spaces"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    spaces = {f"autopeft/search_spaces/{path.name}" for path in (ROOT / "search_spaces").iterdir() if path.is_file()}
    code = {str(path.relative_to(ROOT)) for path in (ROOT / "autopeft").rglob("*.py")}
    results = {f"autopeft/results/{path.name}" for path in (ROOT / "autopeft" / "results").glob("*.[hcm]*")}
    missing = (spaces | code | results | {"autopeft/py.typed"}) - names
    assert not missing
