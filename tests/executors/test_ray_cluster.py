"""Connecting to Ray, and what is said where that fails; nothing here starts one."""

import socket
import subprocess
import sys

import pytest

from autopeft.errors import ExecutorError, StudyError
from autopeft.executors.ray_cluster import RayCluster
from autopeft.spec.study import RayOptions


def test_an_address_where_nothing_answers_is_refused_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    cluster = RayCluster(RayOptions(address=address), n_workers=1)
    with pytest.raises(ExecutorError, match=f"nothing answers at '{address}'.*ray start --head"):
        _ = cluster.share
    cluster.close()


def test_what_ray_refuses_is_said_with_a_way_out() -> None:
    with pytest.raises(ExecutorError, match=r"Ray at 'nowhere' cannot be joined: .*; see executor.address"):
        _ = RayCluster(RayOptions(address="nowhere"), n_workers=1).share


def test_a_gpu_is_not_named_by_number() -> None:
    with pytest.raises(StudyError, match="cuda:1"):
        RayCluster(RayOptions(), n_workers=1, device="cuda:1")


def test_without_ray_the_way_out_is_named() -> None:
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from autopeft.errors import MissingDependencyError\n"
        "try:\n    import autopeft.executors.ray_cluster\n"
        "except MissingDependencyError as error:\n    print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "pip install ray" in said
    assert "executor=local" in said
