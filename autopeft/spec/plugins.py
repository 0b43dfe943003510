"""Parts that packages add by an entry point: found by name, and imported only when they are used."""

from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from autopeft.errors import MissingDependencyError, StudyError
from autopeft.spec.messages import one_of


def names(group: str) -> tuple[str, ...]:
    """Return the names in a group of entry points, autopeft's own first; nothing of them is imported."""
    return tuple(_entries(group))


def load(group: str, name: str) -> Any:
    """Return what an entry point names; its module is imported.

    Raises:
        StudyError: There is none of that name, or two packages bring it.
        MissingDependencyError: Its module cannot be imported.
    """
    known, kind = _entries(group), _kind(group)
    if name not in known:
        raise StudyError(f"{kind} {one_of(known, name)}; one from outside autopeft must be installed here")
    try:
        return known[name].load()
    except ImportError as error:
        raise MissingDependencyError(
            f"the {kind} {name!r} cannot be imported: {error}; install what it needs"
        ) from error


def package_of(group: str, name: str) -> str:
    """Return the package from outside autopeft that brings a name, as `name==version`; empty for autopeft's own."""
    dist = _entries(group)[name].dist
    return "" if dist is None or dist.name == "autopeft" else f"{dist.name}=={dist.version}"


@cache
def _entries(group: str) -> Mapping[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for entry in sorted(entry_points(group=group), key=lambda entry: not entry.value.startswith("autopeft.")):
        known = found.setdefault(entry.name, entry)
        if known.value != entry.value:
            raise StudyError(
                f"a {_kind(group)}'s name must be unique, but {entry.name!r} is both {known.value} and {entry.value}; "
                "uninstall one of the packages"
            )
    return found


def _kind(group: str) -> str:
    """Return the singular noun for what a group holds: `task` for `autopeft.tasks`."""
    return group.rpartition(".")[2].removesuffix("s")
