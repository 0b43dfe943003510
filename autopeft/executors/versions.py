"""What must be the same on the driver and on every worker, and what is said where it is not."""

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from autopeft.errors import ExecutorError

PACKAGES = ("autopeft", "ray", "torch", "transformers", "peft")
"""Values of ours and pickles of Ray cross between processes; the rest decides what training comes to."""


def versions() -> dict[str, str]:
    """Return the versions that this process has; of Python without the patch level, which changes nothing."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in PACKAGES:
        try:
            # Builds of one version (2.13.0+cpu, 2.13.0+cu130) differ by device, not by what they compute.
            found[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            found[name] = "none"
    return found


def check_versions(here: Mapping[str, str], there: Mapping[str, str], *, node: str = "a worker") -> None:
    """Refuse a worker that has another version of something than the driver.

    Args:
        here: Of the driver, as `versions` returns them.
        there: Of the worker.
        node: Where the worker is, in words.

    Raises:
        ExecutorError: They differ; it names each difference.
    """
    different = [name for name in here if here[name] != there.get(name, "none")]
    if not different:
        return
    wants = " and ".join(f"{name} {here[name]}" for name in different)
    has = " and ".join(f"{name} {there.get(name, 'none')}" for name in different)
    raise ExecutorError(
        f"driver and workers must have the same versions, but here is {wants}, and {node} has {has}; install the same "
        "on every node (pip install -c constraints.txt, or one container image for all)"
    )
