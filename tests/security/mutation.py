"""Valid values with something wrong in them: what a fuzzer feeds to the front doors."""

import copy
import json
import random
from collections.abc import Sequence
from typing import Any

WEIRD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    3,
    2**31,
    2**63,
    10**30,
    10**400,
    -(10**30),
    0.5,
    1e-320,
    1e308,
    float("inf"),
    float("-inf"),
    float("nan"),
    "",
    " ",
    "all",
    "n",
    "none",
    "nf4",
    "lora",
    "peft",
    "1e999",
    "inf",
    "-5%",
    "9" * 400,
    "9" * 400 + "GiB",
    "1e400%",
    "../../../etc/passwd",
    "/etc/passwd",
    "~nobody-here/x",
    "a\0b",
    "\ud800",
    "a" * 5_000,
    "%s%n{0.__class__}",
    "(a+)+$",
    [],
    {},
    [[]],
    [None],
    [0],
    ["all"],
    [1, 10**30],
    [float("nan")],
    {"int": [1, "n"]},
    {"int": [1, 10**30]},
    {"float": [0, float("inf")]},
    {"log": [1e-4, 1e-2]},
    {"log": [float("nan"), 1]},
    {"int": [1, 8], "log": True},
    {"any": "per_layer"},
    {"last": {"int": [1, "n"]}},
    {"last": 10**30},
    {"groups": 4},
    {"groups": 10**30},
    {"groups": 2, "shape": "spindle", "only": [1]},
    {"same_as": "lora"},
    {"per_layer": True},
    {"": None},
    [[0, 1], [2, 3]],
    [[10**30]],
    {"lora": {"rank": 1}},
)
"""What no field expects, or one field and no other."""


def mutate(value: Any, rng: random.Random, *, words: Sequence[str] = ()) -> Any:
    """Return a copy of a JSON value with one to three changes.

    Args:
        value: A mapping or a list.
        rng: Decides where and what.
        words: Keys and texts that mean something where the value goes.
    """
    changed = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        changed = _once(changed, rng, words)
    return changed


def _once(value: Any, rng: random.Random, words: Sequence[str]) -> Any:
    places = list(_places(value))
    if not places:
        return rng.choice(WEIRD)
    holder, key = rng.choice(places)
    match rng.randrange(9):
        case 0 | 1 | 2:
            holder[key] = copy.deepcopy(rng.choice(WEIRD))
        case 3:
            del holder[key]
        case 4:
            other, at = rng.choice(places)
            holder[key] = copy.deepcopy(other[at])
        case 5:
            holder[key] = [holder[key]] * rng.choice((1, 2, 50))
        case 6 if isinstance(holder, dict):
            holder[rng.choice([*words, "x", "", "__class__"])] = holder.pop(key)
        case 7 if words:
            holder[key] = rng.choice(words)
        case _:
            holder[key] = nested(rng.choice((2, 20, 200)), holder[key])
    return value


def _places(value: Any) -> Any:
    """Yield every place in a JSON value: what holds it, and under which key."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def nested(depth: int, value: Any) -> Any:
    for level in range(depth):
        value = [value] if level % 2 else {"x": value}
    return value


def mutate_text(text: str, rng: random.Random, pieces: Sequence[str]) -> str:
    """Return a text with one to four cuts, repeats, insertions or swapped characters."""
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(text) + 1)
        end = min(len(text), start + rng.choice((0, 1, 4, 20)))
        new = rng.choice((rng.choice(pieces), chr(rng.randrange(0x250)), text[start:end] * 2, ""))
        text = text[:start] + new + text[end:]
    return text


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """Return bytes with a few of them changed, cut or repeated."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(4):
            case 0:
                changed[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del changed[at:]
            case 2:
                changed[at:at] = rng.randbytes(rng.choice((1, 8, 64)))
            case _:
                changed[at : at + 8] = rng.choice((0, 2**63, 2**64 - 1, len(changed), 10**8)).to_bytes(8, "little")
    return bytes(changed)


def as_json(value: Any) -> str:
    return json.dumps(value)
