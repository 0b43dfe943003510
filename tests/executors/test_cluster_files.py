"""What studies/cluster/ holds is what this version reads; no cluster is asked."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from autopeft.spec.study import load_study

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "studies" / "cluster"


def read(name: str) -> Any:
    return YAML(typ="safe").load((FOLDER / name).read_text(encoding="utf-8"))


def pinned(package: str) -> str:
    found = re.search(rf"^{package}==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def test_the_study_is_one() -> None:
    spec = load_study(FOLDER / "study.yaml")
    assert spec.ray is not None
    assert (spec.n_workers, spec.ray.address, spec.ray.gpus_per_worker) == (8, "auto", 0.5)


def test_the_manifest_runs_the_search_with_a_token_on_the_ray_that_is_tested() -> None:
    job = read("kuberay.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == pinned("ray")
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True
    assert f"rayproject/ray:{pinned('ray')}-py311" in (FOLDER / "README.md").read_text()
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    images = {container["image"] for group in groups for container in group["template"]["spec"]["containers"]}
    assert len(images) == 1, "driver and workers have the same versions"


def test_the_runtime_environment_holds_texts() -> None:
    assert all(isinstance(value, str) for value in read("runtime_env.yaml")["env_vars"].values())


def test_the_script_is_bash_that_asks_for_a_study() -> None:
    subprocess.run(["bash", "-n", FOLDER / "slurm.sh"], check=True)
    done = subprocess.run(["bash", FOLDER / "slurm.sh"], capture_output=True, text=True)
    assert done.returncode != 0
    assert "usage: sbatch slurm.sh STUDY.yaml" in done.stderr


@pytest.mark.parametrize("file", ["slurm.sh", "kuberay.yaml", "README.md"])
def test_the_commands_take_the_options_that_are_shown(file: str) -> None:
    text = (FOLDER / file).read_text(encoding="utf-8")
    shown = {option for line in re.findall(r"autopeft search .*", text) for option in re.findall(r"--[a-z-]+", line)}
    known = subprocess.run(
        [sys.executable, "-m", "autopeft", "search", "--help"], check=True, capture_output=True, text=True
    ).stdout
    assert shown
    assert not [option for option in shown if option not in known]
