"""Which cores and GPUs each worker gets, worked out before a cluster is asked for any.

A request that no node can meet waits for ever in Ray: it is refused here instead.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autopeft.errors import StudyError
from autopeft.spec.study import RayOptions


@dataclass(frozen=True, kw_only=True)
class Share:
    """What each worker gets.

    Attributes:
        n_cpus: Cores, and as many threads.
        n_gpus: GPUs; below 1 they are shared.
    """

    n_cpus: int
    n_gpus: float


def share_out(nodes: Sequence[Mapping[str, float]], n_workers: int, options: RayOptions, device: str = "auto") -> Share:
    """Return what each of `n_workers` gets, every one of them on a single node.

    Args:
        nodes: `CPU` and `GPU` of each node.
        n_workers: Workers that run at the same time.
        options: What was asked for; cores that were left open are shared out evenly.
        device: What the study trains on; for `cpu` no GPU is taken unless asked for.

    Raises:
        StudyError: The nodes cannot hold so many workers.
    """
    n_gpus = options.gpus_per_worker
    if n_gpus is None:
        n_gpus = 1.0 if device != "cpu" and any(node.get("GPU", 0) >= 1 for node in nodes) else 0.0
    most = int(max((node.get("CPU", 0) for node in nodes), default=0))
    asked = [options.cpus_per_worker] if options.cpus_per_worker else range(max(1, most), 0, -1)
    for n_cpus in asked:
        share = Share(n_cpus=n_cpus, n_gpus=n_gpus)
        if sum(_n_fitting(node, share) for node in nodes) >= n_workers:
            return share
    least = Share(n_cpus=options.cpus_per_worker or 1, n_gpus=n_gpus)
    raise StudyError(
        f"Ray must have room for every worker, but got n_workers={n_workers} with {_words(least)} each, and it has "
        f"{_words_of_nodes(nodes)}, room for {sum(_n_fitting(node, least) for node in nodes)}; lower n_workers, "
        f"executor.cpus_per_worker or executor.gpus_per_worker (0.5 lets two workers share a GPU)"
    )


def _n_fitting(node: Mapping[str, float], share: Share) -> int:
    by_cpu = node.get("CPU", 0) // share.n_cpus
    by_gpu = node.get("GPU", 0) // share.n_gpus if share.n_gpus else math.inf
    return int(min(by_cpu, by_gpu))


def _words(share: Share) -> str:
    return f"{share.n_cpus} CPU" + (f" and {share.n_gpus:g} GPU" if share.n_gpus else "")


def _words_of_nodes(nodes: Sequence[Mapping[str, float]]) -> str:
    return " + ".join(f"({node.get('CPU', 0):g} CPU, {node.get('GPU', 0):g} GPU)" for node in nodes) or "no node"
