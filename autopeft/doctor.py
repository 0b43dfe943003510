"""What can be wrong with a machine, tried out rather than guessed."""

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass

PACKAGES = ("torch", "transformers", "peft", "optuna", "datasets", "ray", "bitsandbytes")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str


def examine() -> Iterator[Finding]:
    """Yield a finding for each package, the device, its precision, quantized training, Ray, and the disk."""
    yield Finding(name="python", ok=True, detail=f"{platform.python_version()} on {platform.system()}")
    for name in PACKAGES:
        yield _version(name)
    yield _try("device", _device)
    yield _try("precision", _precision)
    yield _try("training on a 4-bit base", _train_quantized)
    yield _try("workers on ray", _start_ray)
    free = shutil.disk_usage(".").free
    yield Finding(name="disk", ok=free > 2**30, detail=f"{free / 2**30:.1f} GiB free here")
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    yield Finding(name="hub", ok=True, detail="offline: local models only" if offline else "may be asked for models")


def _version(name: str) -> Finding:
    try:
        return Finding(name=name, ok=True, detail=importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name=name, ok=False, detail=f"not installed: pip install {name}")


def _try(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name=name, ok=True, detail=check())
    except Exception as error:  # whatever is wrong with the machine is the finding
        return Finding(name=name, ok=False, detail=f"{type(error).__name__}: {error}")


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return ", ".join(names)
    return f"cpu with {torch.get_num_threads()} threads; no CUDA device"


def _precision() -> str:
    """Say which precision this machine trains fastest in; a study measures its own model, too."""
    import torch

    from autopeft.training.precision import step_times

    return step_times("cuda" if torch.cuda.is_available() else "cpu").describe()


def _start_ray() -> str:
    """Start a local Ray and one worker on it."""
    import time

    from autopeft.executors.ray_cluster import RayCluster
    from autopeft.spec.study import RayOptions

    cluster, started = RayCluster(RayOptions(cpus_per_worker=1), n_workers=1), time.monotonic()
    try:
        n_gpus = cluster.share.n_gpus
        return f"one started in {time.monotonic() - started:.0f} s, with " + ("a GPU" if n_gpus else "no GPU")
    finally:
        cluster.close()


def _train_quantized() -> str:
    """Push a gradient through a 4-bit layer before and after an evaluation, where CPUs have lost it silently."""
    import torch

    from autopeft.models.quantization import probe

    before, after = probe()
    if not before.abs().sum() > 0 or not torch.allclose(before, after):
        raise RuntimeError("gradients do not pass through a 4-bit layer")
    return "gradients pass, also after an evaluation"
