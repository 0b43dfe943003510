from itertools import combinations, product

import pytest
from covering import covering

ROWS, PLACES, STORES = tuple("abcdefgh"), ("P", "Q", "R", "S", "T"), (1, 2, 3)


def never_together(one: object, other: object) -> bool:
    return {one, other} in ({"a", "b"}, {"c", "P"}, {"h", 3}, {"R", 2})


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_allowed_pair_is_there_and_no_other(size: int) -> None:
    cases = covering((ROWS, PLACES, STORES), (size, 1, 1), lambda one, other: not never_together(one, other))
    held = {frozenset(pair) for case in cases for pair in combinations([item for items in case for item in items], 2)}
    pairs = [*product(ROWS, PLACES), *product(ROWS, STORES), *product(PLACES, STORES)]
    pairs += combinations(ROWS, 2) if size > 1 else []
    assert held == {frozenset(pair) for pair in pairs if not never_together(*pair)}
    assert all(1 <= len(rows) <= size and len(places) == len(stores) == 1 for rows, places, stores in cases)


def test_few_cases_and_always_the_same() -> None:
    made = [covering((ROWS, PLACES, STORES), (3, 1, 1), lambda one, other: True) for _ in range(2)]
    assert made[0] == made[1]
    assert len(made[0]) < 2 * len(PLACES) * len(STORES)  # no design holds fewer than the largest product of two groups
