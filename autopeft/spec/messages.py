"""How errors say what was wrong: the key, the value, and the nearest name that would have been right."""

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from autopeft.errors import AutopeftError

MAX_ECHO = 100
"""Characters of a value that a message repeats."""
MAX_NAMES = 20
"""Names that a message lists."""
MAX_REASON = 300
"""Characters of what another library said that a message repeats."""


def echo(value: object) -> str:
    """Return a value as a message repeats it: as Python writes it, and of a long one the beginning and the end."""
    try:
        return cut(repr(value), MAX_ECHO)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return f"a very large {type(value).__name__}"


def cut(text: str, n_characters: int) -> str:
    """Return a text that is at most so long: of a longer one the beginning and the end."""
    if len(text) <= n_characters:
        return text
    end = n_characters // 4
    return f"{text[: n_characters - end - 3]}...{text[-end:]}"


def listed(names: Iterable[object], separator: str = ", ") -> str:
    """Return names as a message lists them: `a, b, c`, and of many the first ones and how many more there are."""
    texts = [cut(str(name), MAX_ECHO) for name in names]
    more = len(texts) - MAX_NAMES
    return separator.join(texts[:MAX_NAMES] + ([f"and {more:,} more"] if more > 0 else []))


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the known name most like `name`, or an empty string."""
    matches = difflib.get_close_matches(name[:MAX_ECHO], list(known), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def one_of(known: Iterable[object], got: object) -> str:
    """Return `must be one of a, b, c, but got 'x'`, with the nearest of them."""
    names = [str(name) for name in known]
    return f"must be one of {listed(names)}, but got {echo(got)}{nearest(str(got), names)}"


def unknown_key(name: str, known: Iterable[str]) -> str:
    """Return `x is not a known key; did you mean 'y'?; known keys: y, z`, for a dotted name."""
    names = list(known)
    hint = nearest(name.rpartition(".")[2], names)
    return f"{cut(name, MAX_ECHO)} is not a known key{hint}; known keys: {listed(names)}"


def first_line(error: BaseException) -> str:
    """Return the first line of another library's message, not too long, or the error's name where it said nothing."""
    return cut((str(error).strip().splitlines() or [type(error).__name__])[0], MAX_REASON)


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
    place = ".".join(cut(str(part), MAX_ECHO) for part in (prefix, *first["loc"]) if part != "")
    if first["type"] == "extra_forbidden":
        return unknown_key(place, known)
    if first["type"] == "missing":
        return f"{place} is required"
    message = first["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if place == "storage":  # an address may hold a password
        return f"{place}: {message}"
    if isinstance(first.get("ctx", {}).get("error"), AutopeftError):  # it says the value that it got
        return message if message.startswith(place) else f"{place}: {message}"
    return f"{place}: {message}, but got {echo(first['input'])}"
