"""Plain versions of rules that the code keeps up to date bit by bit: made anew from all that there is."""

import itertools
import math

from autopeft.searching.rungs import RungEntry
from autopeft.spec.study import EarlyStopping


def groups_of(entries: list[RungEntry], rules: EarlyStopping) -> list[list[RungEntry]]:
    """Return the entries by stratum, the cheapest first: made anew from all of them."""
    number = max(1, min(rules.strata, int(len(entries) // (2 * rules.eta))))
    by_cost = sorted(entries, key=lambda e: (e.cost, e.trial))
    edges = [len(entries) * i // number for i in range(number + 1)]
    return [by_cost[start:end] for start, end in itertools.pairwise(edges) if end > start]


def chosen_anew(entries: list[RungEntry], rules: EarlyStopping) -> set[int]:
    """Return who may go on, made anew from all entries."""

    def best(group: list[RungEntry], n: int) -> set[int]:
        return {e.trial for e in sorted(group, key=lambda e: (e.loss, e.tie, e.trial))[:n]}

    groups = [*groups_of(entries, rules), [e for e in entries if e.slow_start]]
    winners = [best(group, math.ceil(len(group) / rules.eta)) for group in groups]
    winners += [best([e for e in entries if e.base == base], 1) for base in {e.base for e in entries}]
    return set().union(*winners)
