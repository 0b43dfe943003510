"""Tasks by name, without importing one."""

from typing import Any

from autopeft.errors import StudyError
from autopeft.spec import plugins

DEFAULT_TASK = "text-classification"
ENTRY_POINT_GROUP = "autopeft.tasks"
"""Each entry is the name of a task, and the object that is one; see `autopeft.tasks.base.Task`."""


def task_names() -> tuple[str, ...]:
    """Return the names of all installed tasks, autopeft's own first."""
    return plugins.names(ENTRY_POINT_GROUP)


def load_task(name: str) -> Any:
    """Return the task called `name`; its module is imported. Raises what `plugins.load` raises."""
    return plugins.load(ENTRY_POINT_GROUP, name)


def package_of(name: str) -> str:
    """Return the package that brings a task from outside autopeft, as `name==version`; empty for autopeft's own."""
    return plugins.package_of(ENTRY_POINT_GROUP, name)


def require_task(name: str) -> None:
    """Raise `StudyError` where this process, which is to train for a task, does not know it."""
    if name not in task_names():
        raise StudyError(
            f"every process that trains must know the task {name}, but a worker does not; install its package wherever "
            "workers run, or take executor=local"
        )
