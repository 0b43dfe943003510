"""Tasks by name: found through the entry points of installed packages, and imported only when one is used."""

from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from autopeft.errors import MissingDependencyError, StudyError
from autopeft.spec.messages import one_of

DEFAULT_TASK = "text-classification"
ENTRY_POINT_GROUP = "autopeft.tasks"
"""Each entry is the name of a task, and the object that is one; see `autopeft.tasks.base.Task`."""


def task_names() -> tuple[str, ...]:
    """Return the names of all installed tasks, autopeft's own first; nothing of them is imported."""
    return tuple(_entries())


def load_task(name: str) -> Any:
    """Return the task called `name`; its module is imported.

    Raises:
        StudyError: There is none.
        MissingDependencyError: Its module cannot be imported.
    """
    known = _entries()
    if name not in known:
        raise StudyError(f"task {one_of(known, name)}; one from outside autopeft must be installed here")
    try:
        return known[name].load()
    except ImportError as error:
        raise MissingDependencyError(f"the task {name!r} cannot be imported: {error}; install what it needs") from error


def package_of(name: str) -> str:
    """Return the package that brings a task from outside autopeft, as `name==version`; empty for autopeft's own."""
    dist = _entries()[name].dist
    return "" if dist is None or dist.name == "autopeft" else f"{dist.name}=={dist.version}"


def require_task(name: str) -> None:
    """Raise `StudyError` where this process, which is to train for a task, does not know it."""
    if name not in task_names():
        raise StudyError(
            f"every process that trains must know the task {name}, but a worker does not; install its package wherever "
            "workers run, or take executor=local"
        )


@cache
def _entries() -> Mapping[str, EntryPoint]:
    """Return the entry point of each task by name.

    Raises:
        StudyError: Two packages bring a task of one name.
    """
    found: dict[str, EntryPoint] = {}
    entries = entry_points(group=ENTRY_POINT_GROUP)
    for entry in sorted(entries, key=lambda entry: not entry.value.startswith("autopeft.")):
        known = found.setdefault(entry.name, entry)
        if known.value != entry.value:
            raise StudyError(
                f"a task's name must be unique, but {entry.name!r} is both {known.value} and {entry.value}; uninstall "
                "one of the packages"
            )
    return found
