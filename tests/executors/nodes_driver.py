"""A driver on a cluster, in a process of its own: runs segments until it is told that they are enough.

    python -m tests.executors.nodes_driver ADDRESS N_WORKERS FOLDER

It writes FOLDER/state.json after each result, and ends once FOLDER/enough is there.
"""

import json
import sys
from pathlib import Path

from autopeft.executors import ray as on_ray
from autopeft.executors.ray import RayExecutor
from autopeft.executors.ray_cluster import RayCluster
from autopeft.spec.design import Design
from autopeft.spec.study import RayOptions
from autopeft.spec.trial import Segment, SegmentStatus
from tests.executors.remote_workers import make_steady


def segment(trial: int) -> Segment:
    """Return half a second of work."""
    return Segment(trial=trial, design=Design(), learning_rates={}, seed=0, stop=50, full=50)


def main(address: str, n_workers: int, folder: Path) -> None:
    """Keep every worker busy, and run again what is lost."""
    on_ray.WAIT_SECONDS = 2.0  # until it says what it waits for: the run may be over in ten
    cluster = RayCluster(RayOptions(address=address, cpus_per_worker=1), n_workers=n_workers)
    executor = RayExecutor(cluster, make_steady, None, lambda: False)
    n_submitted, done, lost = 0, dict[int, float](), list[int]()
    while True:
        while executor.free() and not (folder / "enough").exists():
            executor.submit(segment(n_submitted))
            n_submitted += 1
        results = executor.wait()
        if not results:
            break
        for result in results:
            if result.status is SegmentStatus.LOST:
                lost.append(result.trial)
                executor.submit(segment(result.trial))
            else:
                assert result.status is SegmentStatus.DONE, result
                assert result.trial not in done
                done[result.trial] = result.scores["pid"]
        part = folder / "state.json.part"
        part.write_text(json.dumps({"submitted": n_submitted, "done": done, "lost": lost}))
        part.rename(folder / "state.json")
    executor.close()
    cluster.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
