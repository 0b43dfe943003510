"""Sizes, counts, shares and durations as people write them."""

import math
import re
import sys

_BYTES = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_COUNTS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9, "t": 10**12, "p": 10**15, "e": 10**18}
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_NUMBER = re.compile(r"([0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)\s*([a-z%]*)", re.IGNORECASE)
_MULTIPLE = re.compile(r"([0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)\s*x\s*([a-z_]+)", re.IGNORECASE)
_SEVERAL = re.compile(r"(?:[0-9.]+\s*(?:d|h|min|m|s)\s*){2,}", re.IGNORECASE)


def _parse(text: str | float, units: dict[str, int], example: str) -> float:
    if isinstance(text, bool) or not isinstance(text, int | float | str):
        raise ValueError(f"must be a number or a text such as {example!r}")
    if isinstance(text, str):
        match = _NUMBER.fullmatch(text.strip())
        if match is None or match[2].lower() not in units:
            raise ValueError(f"must be a number or a text such as {example!r}")
        amount = float(match[1]) * units[match[2].lower()]
    else:
        amount = float(text) if abs(text) < sys.float_info.max else math.inf
    if not math.isfinite(amount):
        raise ValueError(f"must be finite, such as {example!r}")
    return amount


def parse_bytes(text: str | float) -> int:
    """Read bytes: `8GiB`, `500 MB`, or a plain number. Raises ValueError."""
    return round(_parse(text, _BYTES, "8GiB"))


def parse_count(text: str | float) -> int:
    """Read a count: `1.5M`, `200k`, or a plain number. Raises ValueError."""
    return round(_parse(text, _COUNTS, "1.5M"))


def parse_seconds(text: str | float) -> float:
    """Read a duration: `2h`, `30m`, `90s`, `1h30m`, or plain seconds. Raises ValueError."""
    if isinstance(text, str) and _SEVERAL.fullmatch(text.strip()):
        return sum(_parse(part, _SECONDS, "2h") for part in re.findall(r"[0-9.]+\s*[a-z]+", text, re.IGNORECASE))
    return _parse(text, _SECONDS, "2h")


def parse_share(text: str | float) -> float | None:
    """Read a percentage as a share of one: `2%` is 0.02; anything else is None."""
    if isinstance(text, str) and text.strip().endswith("%"):
        return _parse(text.strip()[:-1], {"": 1}, "2%") / 100
    return None


def parse_multiple(text: str | float) -> tuple[float, str] | None:
    """Read a multiple of something that has a name: `0.9x yardstick` is (0.9, "yardstick"); anything else is None."""
    match = _MULTIPLE.fullmatch(text.strip()) if isinstance(text, str) else None
    return None if match is None else (float(match[1]), match[2].lower())


def format_bytes(n_bytes: float) -> str:
    """Write bytes for people, in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(n_bytes) < 1024:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} TiB"


def format_count(count: float) -> str:
    """Write a count for people: 147,456 becomes 147k."""
    for factor, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= factor:
            return f"{count / factor:.3g}{unit}"
    return f"{count:.3g}"


def format_moment(seconds: float) -> str:
    """Write what may be far below a second for people: 0.0123 becomes 12.3 ms."""
    units = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
    factor, unit = next((pair for pair in units if abs(seconds) >= pair[0]), units[-1])
    return f"{seconds / factor:.3g} {unit}"


def format_seconds(seconds: float) -> str:
    """Write a duration for people: 3,725 becomes 1h02m."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.0f}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"
