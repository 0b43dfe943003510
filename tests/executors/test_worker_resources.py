import pytest

from autopeft.errors import StudyError
from autopeft.executors.worker_resources import WorkerResources, share_out
from autopeft.spec.study import RayOptions

ANY = RayOptions()
LAPTOP = [{"CPU": 8.0}]
GPU_NODE = [{"CPU": 16.0, "GPU": 4.0}]
UNEVEN = [{"CPU": 16.0, "GPU": 2.0}, {"CPU": 4.0, "GPU": 1.0}]


@pytest.mark.parametrize(
    ("nodes", "n_workers", "options", "device", "share"),
    [
        (LAPTOP, 1, ANY, "auto", (8, 0)),
        (LAPTOP, 2, ANY, "auto", (4, 0)),
        (LAPTOP, 3, ANY, "auto", (2, 0)),
        (LAPTOP, 8, ANY, "auto", (1, 0)),
        (LAPTOP, 2, RayOptions(cpus_per_worker=1), "auto", (1, 0)),
        (GPU_NODE, 4, ANY, "auto", (4, 1)),
        (GPU_NODE, 4, ANY, "cuda", (4, 1)),
        (GPU_NODE, 4, ANY, "cpu", (4, 0)),
        (GPU_NODE, 8, RayOptions(gpus_per_worker=0.5), "auto", (2, 0.5)),
        (GPU_NODE, 16, RayOptions(gpus_per_worker=0), "auto", (1, 0)),
        (UNEVEN, 2, ANY, "cpu", (8, 0)),
        (UNEVEN, 3, ANY, "auto", (4, 1)),
        (UNEVEN, 5, ANY, "cpu", (4, 0)),
        ([*LAPTOP, *GPU_NODE], 4, ANY, "auto", (4, 1)),
    ],
)
def test_cores_and_gpus_are_shared_out_within_nodes(
    nodes: list[dict[str, float]], n_workers: int, options: RayOptions, device: str, share: tuple[int, float]
) -> None:
    assert share_out(nodes, n_workers, options, device) == WorkerResources(n_cpus=share[0], n_gpus=share[1])


@pytest.mark.parametrize(
    ("nodes", "n_workers", "options", "says"),
    [
        (LAPTOP, 9, ANY, "n_workers=9 with 1 CPU each.*room for 8; lower n_workers"),
        (LAPTOP, 1, RayOptions(cpus_per_worker=9), "9 CPU each.*room for 0"),
        (LAPTOP, 1, RayOptions(gpus_per_worker=1), r"1 CPU and 1 GPU each.*\(8 CPU, 0 GPU\)"),
        (GPU_NODE, 5, ANY, "1 CPU and 1 GPU each.*room for 4.*0.5 lets two workers share"),
        (UNEVEN, 2, RayOptions(cpus_per_worker=10), "room for 1"),
        ([], 1, ANY, "it has no node"),
    ],
)
def test_what_no_node_can_meet_is_refused(
    nodes: list[dict[str, float]], n_workers: int, options: RayOptions, says: str
) -> None:
    with pytest.raises(StudyError, match=says):
        share_out(nodes, n_workers, options)


@pytest.mark.parametrize(
    ("nodes", "n_workers", "options", "device", "share", "n_now"),
    [
        (LAPTOP, 9, ANY, "auto", (1, 0), 8),
        (GPU_NODE, 8, ANY, "auto", (4, 1), 4),
        ([{"CPU": 0.0}], 4, RayOptions(cpus_per_worker=2, gpus_per_worker=0.5), "auto", (2, 0.5), 0),
        ([], 4, ANY, "cuda", (1, 1), 0),
        ([], 4, ANY, "auto", (1, 0), 0),
    ],
)
def test_a_cluster_that_can_grow_is_asked_for_more_than_it_has(
    nodes: list[dict[str, float]],
    n_workers: int,
    options: RayOptions,
    device: str,
    share: tuple[int, float],
    n_now: int,
) -> None:
    found = share_out(nodes, n_workers, options, device, can_grow=True)
    assert found == WorkerResources(n_cpus=share[0], n_gpus=share[1])
    assert found.count(nodes) == n_now
