"""Which cores and GPUs each worker gets, worked out before a cluster is asked for any.

A request that no node can meet waits for ever in Ray. On a Ray of fixed size it is refused here instead; a cluster that
was named by its address may grow.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autopeft.errors import StudyError
from autopeft.spec.study import RayOptions


@dataclass(frozen=True, kw_only=True)
class WorkerResources:
    """What each worker gets.

    Attributes:
        n_cpus: Cores, and as many threads.
        n_gpus: GPUs; below 1 they are shared.
    """

    n_cpus: int
    n_gpus: float

    def describe(self) -> str:
        """Say what it is, in words."""
        return f"{self.n_cpus} CPU" + (f" and {self.n_gpus:g} GPU" if self.n_gpus else "")

    def count(self, nodes: Sequence[Mapping[str, float]]) -> int:
        """Return how many workers with this share nodes have room for, each worker on a single node."""
        return sum(self._count_on(node) for node in nodes)

    def _count_on(self, node: Mapping[str, float]) -> int:
        by_cpu = node.get("CPU", 0) // self.n_cpus
        by_gpu = node.get("GPU", 0) // self.n_gpus if self.n_gpus else math.inf
        return int(min(by_cpu, by_gpu))


def share_out(
    nodes: Sequence[Mapping[str, float]],
    n_workers: int,
    options: RayOptions,
    device: str = "auto",
    *,
    can_grow: bool = False,
) -> WorkerResources:
    """Return what each of `n_workers` gets, every one of them on a single node.

    Args:
        nodes: `CPU` and `GPU` of each node.
        n_workers: Workers that run at the same time.
        options: What was asked for; cores that were left open are shared out evenly.
        device: What the study trains on; for `cpu` no GPU is taken unless asked for.
        can_grow: Whether nodes may join later: workers that have no room now are then no mistake.

    Raises:
        StudyError: The nodes cannot hold so many workers, and no more will come.
    """
    n_gpus = options.gpus_per_worker
    if n_gpus is None:
        has_gpus = any(node.get("GPU", 0) >= 1 for node in nodes) or (can_grow and device == "cuda")
        n_gpus = 1.0 if device != "cpu" and has_gpus else 0.0
    least = WorkerResources(n_cpus=options.cpus_per_worker or 1, n_gpus=n_gpus)
    n_room = least.count(nodes)
    if n_room < n_workers and not can_grow:
        raise StudyError(
            f"Ray must have room for every worker, but got n_workers={n_workers} with {least.describe()} each, and it "
            f"has {_words(nodes)}, room for {n_room}; lower n_workers, executor.cpus_per_worker or "
            f"executor.gpus_per_worker (0.5 lets two workers share a GPU)"
        )
    if options.cpus_per_worker or not n_room:
        return least
    most = int(max((node.get("CPU", 0) for node in nodes), default=0))
    shares = (WorkerResources(n_cpus=n_cpus, n_gpus=n_gpus) for n_cpus in range(most, 1, -1))
    return next((share for share in shares if share.count(nodes) >= min(n_workers, n_room)), least)


def _words(nodes: Sequence[Mapping[str, float]]) -> str:
    return " + ".join(f"({node.get('CPU', 0):g} CPU, {node.get('GPU', 0):g} GPU)" for node in nodes) or "no node"
