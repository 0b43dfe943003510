"""A model folder and an adapter to fuse that only the driver has: workers run on a node whose files are others."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import autopeft
from autopeft.models.artifact import pack
from autopeft.models.attach import attach
from autopeft.models.base import load_base
from autopeft.spec.model import Head
from autopeft.spec.trial import Outcome
from tests.tasks.generated import save_tiny_bert

pytestmark = pytest.mark.ray


def environment(**others: str) -> dict[str, str]:
    """Return what processes of the cluster inherit: Ray may have set its authentication in ours meanwhile."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **others}


@pytest.fixture
def driver(tmp_path: Path) -> Path:
    """Return the folder that only the driver has: a model, and an adapter that was trained on it."""
    folder = tmp_path / "driver"
    for name in ("model", "adapter"):
        (folder / name).mkdir(parents=True)
    save_tiny_bert(folder / "model")
    base = load_base(
        str(folder / "model"), Head(auto_class="AutoModelForSequenceClassification", labels=("bad", "good"))
    )
    with attach(base, autopeft.Design.from_dict({"blocks": [{"adapter": {"size": 4}}]})) as attached:
        for name, content in pack(attached, metadata={}).items():
            (folder / "adapter" / name).write_bytes(content)
    return folder


@pytest.fixture
def address(driver: Path, tmp_path: Path) -> Iterator[str]:
    """Start a head without cores, and a node for two workers on which the driver's folder is an empty one.

    The node lives in a mount namespace of its own: what is mounted there over the folder is for its processes alone.
    """
    from ray.cluster_utils import Cluster

    alone = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    if subprocess.run([*alone, "mount", "-t", "tmpfs", "none", str(driver)], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("needs a mount namespace of its own, which this machine does not give")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    with (tmp_path / "node.log").open("wb") as log:
        node = subprocess.Popen(
            [
                *alone,
                *("sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(driver)),
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=2"),
                f"--address={cluster.address}",
            ],
            env=environment(XDG_CACHE_HOME=str(tmp_path / "cache of the node")),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield cluster.address
        assert node.poll() is None, (tmp_path / "node.log").read_text()
    finally:
        node.terminate()
        node.wait()
        cluster.shutdown()


def test_what_a_node_lacks_is_sent_to_it_once(
    study: dict[str, Any], driver: Path, address: str, tmp_path: Path
) -> None:
    space = {"blocks": {"fusion": {"adapters": [[str(driver / "adapter")]], "learning_rate": {"log": [1e-4, 1e-2]}}}}
    study |= {"model": str(driver / "model"), "space": space, "budget": {}, "yardstick": None, "n_trials": 2}
    study |= {"executor": {"type": "ray", "address": address, "workers": 2, "cpus_per_worker": 1}}
    path = tmp_path / "study.yaml"
    path.write_text(json.dumps(study))
    ended = subprocess.run(
        [sys.executable, "-m", "autopeft", "search", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
    )
    assert ended.returncode == 0, ended.stdout
    assert ended.stdout.count("to nodes that lack it") == 1
    sent = [path for path in (tmp_path / "cache of the node" / "autopeft" / "folders").iterdir() if path.is_dir()]
    assert {frozenset(file.name for file in folder.iterdir()) for folder in sent} == {
        frozenset(file.name for file in (driver / name).iterdir()) for name in ("model", "adapter")
    }
    result = autopeft.open(Path(study["output_dir"]) / "tiny")
    fused = [trial for trial in result.state.trials if trial.design.kinds == ("fusion",)]
    assert len(fused) == 2
    assert {trial.outcome for trial in result.state.trials} <= {Outcome.COMPLETE, Outcome.STOPPED}
    result.export(next(trial for trial in fused if trial.outcome is Outcome.COMPLETE), tmp_path / "exported")
    description = json.loads((tmp_path / "exported" / "autopeft.json").read_text())
    assert description["base_model"]["name"] == str(driver / "model"), "its name is the driver's, wherever it trained"
    autopeft.load(tmp_path / "exported")
