"""What studies/cluster/ holds is what this version reads; no cluster is asked."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from autopeft.interruption import LAST_SECONDS
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
    variables = read("runtime_env.yaml")["env_vars"]
    assert all(isinstance(value, str) for value in variables.values())
    of_the_manifest = YAML(typ="safe").load(read("kuberay.yaml")["spec"]["runtimeEnvYAML"])["env_vars"]
    assert of_the_manifest["RAY_JOB_STOP_WAIT_TIME_S"] == variables["RAY_JOB_STOP_WAIT_TIME_S"]


def test_the_script_is_bash_that_asks_for_a_study() -> None:
    subprocess.run(["bash", "-n", FOLDER / "slurm.sh"], check=True)
    done = subprocess.run(["bash", FOLDER / "slurm.sh"], capture_output=True, text=True)
    assert done.returncode != 0
    assert "usage: sbatch slurm.sh STUDY.yaml" in done.stderr


STAND_INS = {
    "scontrol": "echo node1; sleep 0.1; echo node2",  # whoever stops reading after a line kills it
    "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "hostname": 'echo "127.0.1.1 fe80::1 10.0.0.5 172.17.0.1"; sleep 0.1; echo',
    "ray": 'echo "ray $*" >> "$LOG"; [[ $1 != start ]] || exec sleep 60',
    "autopeft": 'trap "exit 143" TERM; echo "autopeft $*" >> "$LOG"; while true; do sleep 0.05; done',
}


def test_the_script_starts_ray_where_other_nodes_reach_it_and_passes_a_signal_on(tmp_path: Path) -> None:
    """With stand-ins for Slurm, Ray and the search, that write down how they are called."""
    (tmp_path / "bin").mkdir()
    for name, does in STAND_INS.items():
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{does}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    log = tmp_path / "log"
    slurm = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2"}
    variables = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "LOG": str(log), **slurm}
    script = subprocess.Popen(
        ["bash", FOLDER / "slurm.sh", "study.yaml"],
        env={**os.environ, **variables, "SLURM_CPUS_PER_TASK": "4"},
        start_new_session=True,
    )
    try:
        for _ in range(1200):
            if log.is_file() and len(log.read_text().splitlines()) == 4:
                break
            time.sleep(0.05)
        script.terminate()
        assert script.wait(20) == 143
    finally:
        os.killpg(script.pid, signal.SIGKILL)  # Slurm ends what is left
    assert sorted(log.read_text().splitlines()) == [
        "autopeft search study.yaml --executor ray --address 10.0.0.5:20007 --set grace_seconds=100",
        "ray health-check --address 10.0.0.5:20007",
        "ray start --block --num-cpus=4 --address=10.0.0.5:20007",
        "ray start --block --num-cpus=4 --head --node-ip-address=10.0.0.5 --port=20007 --include-dashboard=false",
    ]
    seconds = int(re.findall(r"^#SBATCH --signal=B:TERM@(\d+)$", (FOLDER / "slurm.sh").read_text(), re.MULTILINE)[0])
    assert seconds > 100 + LAST_SECONDS


@pytest.mark.parametrize("file", ["slurm.sh", "kuberay.yaml", "README.md"])
def test_the_commands_take_the_options_that_are_shown(file: str) -> None:
    text = (FOLDER / file).read_text(encoding="utf-8")
    shown = {option for line in re.findall(r"autopeft search .*", text) for option in re.findall(r"--[a-z-]+", line)}
    known = subprocess.run(
        [sys.executable, "-m", "autopeft", "search", "--help"], check=True, capture_output=True, text=True
    ).stdout
    assert shown
    assert not [option for option in shown if option not in known]
