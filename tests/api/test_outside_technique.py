"""A technique from another package: one file and one entry point, and everything that autopeft does with techniques."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SPACE: dict[str, Any] = {
    "blocks": {
        "layer_scale": {"at": ["mlp", "both"], "learning_rate": {"log": [1e-2, 1e-1]}},
        "lora": {"use": [True, False], "rank": [1, 2]},
    },
    "require": {"any_of": ["layer_scale"]},
}
LOAD = """
import sys, torch, autopeft
model, tokenizer = autopeft.load(sys.argv[1])
print(model(**tokenizer("good1 word2 bad3", return_tensors="pt")).logits.tolist())
"""
IN_A_SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[2])
import autopeft
import autopeft_layer_scale
from autopeft.errors import AutopeftError
try:
    autopeft.search(**json.loads(sys.argv[1]))
except AutopeftError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the example's package into a folder of its own, from a copy: a build leaves files behind."""
    folder = tmp_path_factory.mktemp("outside")
    source, target = folder / "source", folder / "site"
    source.mkdir()
    for file in (ROOT / "studies" / "layer_scale").glob("*.*"):
        (source / file.name).write_bytes(file.read_bytes())
    install = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", *install, str(source)], check=True)
    return target


def run(*command: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a new Python process, which sees the package at `path` alone."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*([str(path)] if path else []), str(ROOT)])}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)


def study_file(study: dict[str, Any], folder: Path, **changes: Any) -> str:
    file = folder / "study.yaml"
    # JSON is YAML.
    file.write_text(
        json.dumps({**study, "space": SPACE, "n_trials": 2, "early_stopping": "off", **changes}), encoding="utf-8"
    )
    return str(file)


def check_search(study: dict[str, Any], installed: Path, folder: Path, **changes: Any) -> Path:
    """Search with the command line in a new process, and return the folder of an exported design of the technique."""
    searched = run("-m", "autopeft", "search", study_file(study, folder, **changes), path=installed)
    assert searched.returncode == 0, searched.stderr
    runs = Path(study["output_dir"]) / "tiny"
    mine = [file for file in (runs / "adapters").glob("*/autopeft.json") if "layer_scale" in file.read_text("utf-8")]
    assert mine, searched.stdout
    target = folder / "exported"
    exported = run("-m", "autopeft", "export", str(runs), str(target), "--trial", mine[0].parent.name, path=installed)
    assert exported.returncode == 0, exported.stderr
    return target


@pytest.mark.slow
def test_it_is_searched_exported_and_loaded(study: dict[str, Any], installed: Path, tmp_path: Path) -> None:
    target = check_search(study, installed, tmp_path)
    assert run("-c", LOAD, str(target), path=installed).stdout.startswith("[[")

    without = run("-c", LOAD, str(target))
    assert "needs the technique 'layer_scale', which autopeft does not know here" in without.stderr
    assert "run pip install autopeft-layer-scale==0.1.0" in without.stderr
    unknown = run("-m", "autopeft", "search", study_file(study, tmp_path, study_name="unknown"))
    assert unknown.returncode != 0
    assert "one from outside autopeft must be installed here" in unknown.stderr


@pytest.mark.ray
def test_workers_on_ray_know_an_installed_package(study: dict[str, Any], installed: Path, tmp_path: Path) -> None:
    check_search(study, installed, tmp_path, executor={"type": "ray", "cpus_per_worker": 1})


@pytest.mark.ray
def test_workers_on_ray_do_not_know_what_a_script_registers(
    study: dict[str, Any], installed: Path, tmp_path: Path
) -> None:
    asked = {**study, "space": SPACE, "n_trials": 1, "executor": {"type": "ray", "cpus_per_worker": 1}}
    answer = run("-c", IN_A_SCRIPT, json.dumps(asked), str(installed))
    assert answer.stdout.startswith(
        "DesignError every process that trains must know the technique layer_scale, but a worker does not"
    ), answer.stderr
