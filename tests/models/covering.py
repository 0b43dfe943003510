"""Few cases that hold every pair: a greedy covering design, one case at a time.

Source: Cohen, Dalal, Fredman and Patton 1997, "The AETG system: an approach to testing based on combinatorial design",
section 3 (greedy, one test at a time), without its random restarts and with several items of one group in a case.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from itertools import combinations, product
from typing import TypeVar

Item = TypeVar("Item", bound=Hashable)


def covering(
    groups: Sequence[Sequence[Item]], sizes: Sequence[int], allowed: Callable[[Item, Item], bool]
) -> list[tuple[tuple[Item, ...], ...]]:
    """Return cases such that each allowed pair of items is in one of them, the same ones at every call.

    Args:
        groups: What there is to choose from; no item is in two groups.
        sizes: How many items of each group a case may hold; it holds at least one of each.
        allowed: Whether two items may be in one case.

    Returns:
        For each case the items of each group, in the groups' order.
    """
    wanted = _pairs(groups, sizes, allowed)
    position = {item: place for place, item in enumerate(item for group in groups for item in group)}
    used: Counter[Item] = Counter()
    cases = []
    while wanted:
        case = list(next(iter(wanted)))
        while candidates := [
            item
            for group, size in zip(groups, sizes, strict=True)
            if len(set(group) & set(case)) < size
            for item in group
            if item not in case and all(allowed(item, other) for other in case)
        ]:
            gains = {item: sum(_key(item, other, position) in wanted for other in case) for item in candidates}
            case.append(max(candidates, key=lambda item: (gains[item], -used[item], -position[item])))
        used.update(case)
        for pair in combinations(case, 2):
            wanted.pop(_key(*pair, position), None)
        cases.append(tuple(tuple(item for item in group if item in case) for group in groups))
    assert all(all(chosen) for chosen in cases), "a pair that is allowed must fit into a whole case"
    return cases


def _pairs(
    groups: Sequence[Sequence[Item]], sizes: Sequence[int], allowed: Callable[[Item, Item], bool]
) -> dict[tuple[Item, Item], None]:
    """Return the allowed pairs, in order: a dictionary without values keeps it."""
    inside = [pair for group, size in zip(groups, sizes, strict=True) if size > 1 for pair in combinations(group, 2)]
    across = [pair for one, other in combinations(groups, 2) for pair in product(one, other)]
    return {pair: None for pair in (*inside, *across) if allowed(*pair)}


def _key(one: Item, other: Item, position: dict[Item, int]) -> tuple[Item, Item]:
    return (one, other) if position[one] < position[other] else (other, one)
