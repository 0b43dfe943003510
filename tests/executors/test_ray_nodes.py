"""Several Ray nodes on one machine: nodes join and leave while segments run. Drivers are processes of their own."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Run a cluster whose head has no cores: what computes is on nodes that tests add."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


def start(cluster: Any, folder: Path, *, n_workers: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.executors.nodes_driver", cluster.address, str(n_workers), str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def read(folder: Path) -> dict[str, Any]:
    path = folder / "state.json"
    return json.loads(path.read_text()) if path.is_file() else {"submitted": 0, "done": {}, "lost": []}


def wait_for(process: subprocess.Popen[str], folder: Path, condition: Callable[[dict[str, Any]], bool]) -> None:
    for _ in range(2400):
        if condition(read(folder)):
            return
        if process.poll() is not None:
            raise AssertionError(process.communicate()[0])
        time.sleep(0.1)
    raise AssertionError("waited for four minutes")


def test_nodes_join_and_leave_and_every_segment_is_done(cluster: Any, tmp_path: Path) -> None:
    """Three workers are wanted: one has room at first, a second comes with a node, which is then killed."""
    first = cluster.add_node(num_cpus=1)
    process = start(cluster, tmp_path, n_workers=3)
    try:
        wait_for(process, tmp_path, lambda state: len(state["done"]) >= 1)
        second = cluster.add_node(num_cpus=1)
        wait_for(process, tmp_path, lambda state: len(set(state["done"].values())) == 2)
        cluster.remove_node(second, allow_graceful=False)
        n_before = len(read(tmp_path)["done"])
        wait_for(process, tmp_path, lambda state: state["lost"] and len(state["done"]) > n_before + 2)
        (tmp_path / "enough").touch()
        output, _ = process.communicate(timeout=240)
    finally:
        process.kill()
        cluster.remove_node(first)
    assert process.returncode == 0, output
    end = read(tmp_path)
    assert sorted(map(int, end["done"])) == list(range(end["submitted"])), "each once, and none is missing"
    assert len(end["lost"]) == 1, "only what ran on the node"
    assert len(set(end["done"].values())) == 2
    assert "more worker" in output
    assert "with 1 CPU; the search runs on" in output
