"""Connecting to Ray, and what is said where that fails; nothing here starts one."""

import socket
import subprocess
import sys

import pytest

from autopeft.errors import ExecutorError, StudyError
from autopeft.executors.ray_cluster import RayCluster, _why_not
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


def test_rays_own_check_of_versions_is_told_in_a_line() -> None:
    from ray._private.utils import check_version_info

    with pytest.raises(RuntimeError) as caught:
        check_version_info({"ray_version": "2.1.0", "python_version": "3.12.1"}, "this node")
    said = _why_not(caught.value)
    assert "\n" not in said
    assert "cluster was started with: Ray: 2.1.0 Python: 3.12.1 This process" in said
    assert said.endswith("; install the same on both")


def test_a_token_that_may_be_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    assert "RAY_AUTH_MODE=token" in _why_not(ConnectionError("Failed to connect"))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert _why_not(ConnectionError("Failed to connect.")) == "Failed to connect; see executor.address"


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
