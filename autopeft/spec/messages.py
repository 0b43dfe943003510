"""How errors say what was wrong: the key, the value, and the nearest name that would have been right."""

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the known name most like `name`, or an empty string."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def one_of(known: Iterable[object], got: object) -> str:
    """Return `must be one of a, b, c, but got 'x'`, with the nearest of them."""
    names = [str(name) for name in known]
    return f"must be one of {', '.join(names)}, but got {got!r}{nearest(str(got), names)}"


def unknown_key(name: str, known: Iterable[str]) -> str:
    """Return `x is not a known key; did you mean 'y'?; known keys: y, z`, for a dotted name."""
    names = list(known)
    return f"{name} is not a known key{nearest(name.rpartition('.')[2], names)}; known keys: {', '.join(names)}"


def first_line(error: BaseException) -> str:
    """Return the first line of what another library said, or the name of its error where it said nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def first_complaint(error: ValidationError) -> dict[str, Any]:
    """Return the complaint to show: unknown keys before wrong values, values before words that they are not.

    Where a value may be of several types, pydantic puts the type it tried into the location; that part is left out.
    """

    def rank(item: Any) -> tuple[bool, bool]:
        return item["type"] != "extra_forbidden", item["type"] == "literal_error"

    first: dict[str, Any] = dict(min(error.errors(), key=rank))
    *place, last = first["loc"] or ("",)
    kept = [part for part in place if isinstance(part, int) or part == part.lower()]
    is_type = first["type"] != "extra_forbidden" and isinstance(last, str) and last != last.lower()
    first["loc"] = (*kept,) if is_type else (*kept, last)
    return first


def explain(error: ValidationError, *, prefix: str = "", known: Iterable[str] = ()) -> str:
    """Turn pydantic's first complaint into one sentence: the key, the rule and the value.

    Args:
        error: What pydantic raised.
        prefix: Path of the validated value inside its file, put before each key.
        known: Keys that would have been accepted, for the hint on an unknown one.
    """
    first = first_complaint(error)
    place = ".".join(str(part) for part in (prefix, *first["loc"]) if part != "")
    if first["type"] == "extra_forbidden":
        return unknown_key(place, known)
    if first["type"] == "missing":
        return f"{place} is required"
    message = first["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if place == "storage":  # an address may hold a password
        return f"{place}: {message}"
    return f"{place}: {message}, but got {first['input']!r}"
