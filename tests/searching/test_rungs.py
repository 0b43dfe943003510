"""Early stopping: who goes on from a rung."""

import itertools
import math
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from autopeft.searching.rungs import Rung, RungEntry, strata
from autopeft.spec.study import EarlyStopping

entries = st.lists(
    st.tuples(st.integers(1, 10**6), st.sampled_from([-0.9, -0.8, -0.7, -0.6]), st.booleans()), max_size=40
).map(
    lambda rows: [
        RungEntry(trial=i, cost=cost, loss=loss, slow_start=slow) for i, (cost, loss, slow) in enumerate(rows)
    ]
)
rules = st.builds(EarlyStopping, eta=st.sampled_from([2.0, 3.0]), strata=st.integers(1, 4))


def promotable(entries: list[RungEntry], rules: EarlyStopping) -> frozenset[int]:
    """Return who may go on from a rung that these have reached."""
    rung = Rung(rules)
    for entry in entries:
        rung.put(entry)
    return rung.chosen()


def groups_of(entries: list[RungEntry], rules: EarlyStopping) -> list[list[RungEntry]]:
    """Return the entries by stratum, the cheapest first."""
    costs, trials = (np.array([getattr(e, name) for e in entries], dtype=float) for name in ("cost", "trial"))
    of_entry = strata(costs, trials, rules).tolist()
    return [[e for e, number in zip(entries, of_entry, strict=True) if number == n] for n in sorted(set(of_entry))]


@given(entries, rules)
def test_strata_are_a_partition_in_order_of_cost(entries: list[RungEntry], rules: EarlyStopping) -> None:
    groups = groups_of(entries, rules)
    assert sorted(e.trial for group in groups for e in group) == [e.trial for e in entries]
    for cheap, dear in itertools.pairwise(groups):
        assert max(e.cost for e in cheap) <= min(e.cost for e in dear)
    assert len(groups) <= rules.strata
    if len(groups) > 1:
        assert min(map(len, groups)) >= 2 * rules.eta - 1
        assert max(map(len, groups)) - min(map(len, groups)) <= 1


@given(entries, rules)
def test_the_best_of_each_stratum_goes_on(entries: list[RungEntry], rules: EarlyStopping) -> None:
    chosen = promotable(entries, rules)
    for group in groups_of(entries, rules):
        passed = [e for e in group if e.trial in chosen and not e.slow_start]
        quota = math.ceil(len(group) / rules.eta)
        assert len(passed) <= quota
        best = min(group, key=lambda e: (e.loss, e.trial))
        assert best.trial in chosen
        for stopped in (e for e in group if e.trial not in chosen):
            assert sum((e.loss, e.trial) < (stopped.loss, stopped.trial) for e in group) >= quota


@given(entries, rules)
def test_slow_techniques_keep_a_quota(entries: list[RungEntry], rules: EarlyStopping) -> None:
    slow = [e for e in entries if e.slow_start]
    passed = [e for e in slow if e.trial in promotable(entries, rules)]
    assert len(passed) >= math.ceil(len(slow) / rules.eta)


@given(entries, rules)
def test_scores_that_come_one_by_one_are_judged_as_if_at_once(entries: list[RungEntry], rules: EarlyStopping) -> None:
    rung = Rung(rules)
    for n, entry in enumerate(entries, start=1):
        rung.put(replace(entry, loss=0.0))
        rung.put(entry)
        assert rung.chosen() == promotable(entries[:n], rules)


def test_the_best_of_each_base_goes_on() -> None:
    plain = [RungEntry(trial=i, cost=i, loss=-0.9) for i in range(8)]
    quantized = [RungEntry(trial=8 + i, cost=i, loss=-0.5 - 0.1 * i, base="nf4") for i in range(3)]
    assert promotable([*plain, *quantized], EarlyStopping(strata=1)) >= {10}
    assert not promotable([*plain, *quantized], EarlyStopping(strata=1)) & {8, 9}


def test_cost_does_not_decide_within_a_stratum() -> None:
    cheap_and_bad = RungEntry(trial=0, cost=10, loss=-0.5)
    dear_and_good = RungEntry(trial=1, cost=99, loss=-0.9)
    assert promotable([cheap_and_bad, dear_and_good], EarlyStopping()) == {1}
