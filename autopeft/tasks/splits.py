"""Which example goes into which split: made by label or by group, seeded, or taken as the data gives it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autopeft.errors import DataError
from autopeft.spec.messages import echo, listed, nearest
from autopeft.spec.training import Splits

NAMES = ("train", "validation", "test")
ALIASES = {"train": ("train", "training"), "validation": ("validation", "val", "valid", "dev"), "test": ("test",)}
DEFAULT_SHARE = 0.15
"""Share of the data taken for validation, and for the test, where nothing is said."""

Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where each split comes from.

    Attributes:
        pool: Name of the data's split that the training split, and every made split, is taken from.
        given: Names of the data's splits that are used as they are, by role.
        made: How many examples (below 1: a share) to take from the pool, by role; `train` only where limited.
    """

    pool: str
    given: Mapping[str, str]
    made: Mapping[str, float]


def find_sources(available: list[str], splits: Splits) -> Sources:
    """Decide where each split comes from, from the names of the data's splits and the study's wishes.

    Raises:
        DataError: A named split does not exist or is used twice, or no split can be taken for training.
    """
    wishes = {role: getattr(splits, role) for role in NAMES}
    given = {role: _named(role, wish, available) for role, wish in wishes.items() if isinstance(wish, str)}
    for role in NAMES:
        free = [name for name in available if name not in given.values()]
        found = [name for alias in ALIASES[role] for name in free if name.lower() == alias]
        if wishes[role] is None and found:
            given[role] = found[0]
    pool = given.pop("train", None)
    if pool is None:
        rest = [name for name in available if name not in given.values()]
        if len(rest) > 1 and "train" in rest:
            rest = ["train"]
        if len(rest) != 1:
            raise DataError(
                f"splits.train must name the split to train on, because the data has {listed(available)}; "
                f"set splits.train to one of them"
            )
        pool = rest[0]
    used = [pool, *given.values()]
    twice = [name for name in used if used.count(name) > 1]
    if twice:
        raise DataError(
            f"train, validation and test must be different splits, but {twice[0]!r} is used twice; "
            f"name another of {listed(available)}, or give a share such as splits.test: 0.15"
        )
    made = {role: wish for role, wish in wishes.items() if isinstance(wish, float)}
    for role in ("validation", "test"):
        if role not in given:
            made.setdefault(role, DEFAULT_SHARE)
    return Sources(pool=pool, given=given, made=made)


def _named(role: str, name: str, available: list[str]) -> str:
    if name not in available:
        whole = [split for split in available if re.fullmatch(rf"{re.escape(split)}[-_.]\d+-of-\d+.*", name)]
        hint = f"; the shards of {whole[0]!r} are put together: name that" if whole else nearest(name, available)
        raise DataError(
            f"splits.{role} must name a split of the data, but got {echo(name)}{hint}; the data has {listed(available)}"
        )
    return name


def make_splits(pool: pd.DataFrame, made: Mapping[str, float], *, seed: int) -> dict[str, Indices]:
    """Assign the rows of the pool to splits: disjoint, in the pool's order, a pure function of the seed.

    Args:
        pool: Examples; a `label` column is stratified by, and groups of a `group` column do not cross splits.
        made: How many examples (below 1: a share of the pool) by role; what is left goes to `train`.
        seed: Of the assignment.

    Raises:
        DataError: The pool is too small, or its groups cannot make the splits.
    """
    sizes = {role: _size(role, made[role], len(pool)) for role in NAMES if role in made}
    needed = sum(sizes.values()) + (0 if "train" in sizes else 1)
    if needed > len(pool):
        asked = ", ".join(f"{role} {size}" for role, size in sizes.items())
        raise DataError(
            f"the splits must fit into the data, but {asked} were asked of {len(pool)} rows; lower splits.* or add data"
        )
    generator = np.random.default_rng([seed, 0])
    labels = pd.factorize(pool["label"])[0] if "label" in pool else np.zeros(len(pool), dtype=np.int64)
    if "group" in pool:
        return _by_group(pd.factorize(pool["group"])[0], labels, made, sizes, generator)
    order = stratified_order(labels, generator)
    # Train comes first in this order, so that every class has its first example there.
    held_out = sum(size for role, size in sizes.items() if role != "train")
    n_train = sizes.get("train", len(pool) - held_out)
    result = {"train": np.sort(order[:n_train])}
    start = n_train
    for role in ("validation", "test"):
        if role in sizes:
            result[role] = np.sort(order[start : start + sizes[role]])
            start += sizes[role]
    return result


def _size(role: str, wish: float, n_rows: int) -> int:
    if wish < 1:
        return max(1, round(wish * n_rows))
    if wish != int(wish):
        raise DataError(f"splits.{role} must be a share below 1 or a whole number of examples, but got {wish}")
    return int(wish)


def stratified_order(labels: Indices, generator: np.random.Generator) -> Indices:
    """Return a random order of which every stretch has the classes in proportion, as nearly as whole rows allow.

    The k-th of the n examples of a class, shuffled, is put at the place (k + 1/2) / n of the order, and
    its first one at the front.
    """
    shuffled = generator.permutation(len(labels))
    counts = np.bincount(labels)
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    starts = np.cumsum(counts) - counts
    rank = np.arange(len(labels)) - starts[labels[by_class]]
    place = np.where(rank == 0, 0.0, (rank + 0.5) / counts[labels[by_class]])
    return np.asarray(by_class[np.lexsort((generator.random(len(labels)), place))])


def _by_group(
    groups: Indices,
    labels: Indices,
    made: Mapping[str, float],
    sizes: Mapping[str, int],
    generator: np.random.Generator,
) -> dict[str, Indices]:
    """Fill test, then validation, with whole groups in random order; the rest is for training.

    A share is met as nearly as whole groups allow; a count is met exactly, by leaving out rows of the
    groups that went over it.
    """
    group_sizes = np.bincount(groups)
    free = list(generator.permutation(len(group_sizes)))
    result: dict[str, Indices] = {}
    for role in ("test", "validation"):
        if role not in sizes:
            continue
        exact, taken, n_taken = made[role] >= 1, [], 0
        for group in free:
            if n_taken >= sizes[role]:
                break
            if exact or n_taken + group_sizes[group] / 2 <= sizes[role]:
                taken.append(group)
                n_taken += int(group_sizes[group])
        free = [group for group in free if group not in set(taken)]
        result[role] = _subset(
            np.flatnonzero(np.isin(groups, taken)), labels, sizes[role] if exact else None, generator
        )
    rest = np.flatnonzero(np.isin(groups, free))
    result["train"] = _subset(rest, labels, sizes.get("train"), generator)
    for role, rows in result.items():
        wanted = sizes.get(role, 1) if made.get(role, 0) >= 1 or role == "train" else 1
        if len(rows) < wanted:
            raise DataError(
                f"whole groups must fill the splits, but {len(group_sizes)} groups (the largest has "
                f"{group_sizes.max()} of {len(groups)} rows) leave {len(rows)} rows for {role}, which needs {wanted}; "
                f"lower splits.*, or choose another columns.group"
            )
    return result


def _subset(rows: Indices, labels: Indices, size: int | None, generator: np.random.Generator) -> Indices:
    if size is None or len(rows) <= size:
        return rows
    present = np.unique(labels[rows], return_inverse=True)[1]
    return np.sort(rows[stratified_order(present, generator)[:size]])
