"""Early stopping: who goes on from a rung."""

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from autopeft.searching.rungs import Rung, RungEntry
from autopeft.spec.study import EarlyStopping
from tests.oracles import chosen_anew, groups_of

entries = st.lists(
    st.tuples(st.integers(1, 10**6), st.sampled_from([-0.9, -0.8, -0.7, -0.6]), st.booleans()), max_size=40
).map(
    lambda rows: [
        RungEntry(trial=i, cost=cost, loss=loss, slow_start=slow) for i, (cost, loss, slow) in enumerate(rows)
    ]
)
rules = st.builds(EarlyStopping, eta=st.sampled_from([2.0, 3.0]), strata=st.integers(1, 4))


def rung_of(entries: list[RungEntry], rules: EarlyStopping) -> Rung:
    rung = Rung(rules)
    for entry in entries:
        rung.put(entry)
    return rung


def promotable(entries: list[RungEntry], rules: EarlyStopping) -> frozenset[int]:
    """Return who may go on from a rung that these have reached."""
    return rung_of(entries, rules).chosen()


@given(entries, rules)
def test_strata_are_a_partition_in_order_of_cost(entries: list[RungEntry], rules: EarlyStopping) -> None:
    rung = rung_of(entries, rules)
    stratum = {e.trial: rung.verdict(e.trial).stratum for e in entries}
    groups = [[e for e in entries if stratum[e.trial] == number] for number in sorted(set(stratum.values()))]
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


scores = st.builds(
    RungEntry,
    trial=st.integers(0, 30),
    cost=st.integers(1, 12).map(float),
    loss=st.sampled_from([-0.9, -0.8, -0.7]),
    tie=st.sampled_from([0.0, 0.1]),
    slow_start=st.booleans(),
    base=st.sampled_from(["none", "nf4", "int8"]),
)


@given(
    st.lists(scores, max_size=80),
    st.builds(EarlyStopping, eta=st.sampled_from([1.1, 2.0, 3.0]), strata=st.integers(1, 9)),
)
def test_scores_that_come_and_change_one_by_one_are_judged_as_if_at_once(
    changes: list[RungEntry], rules: EarlyStopping
) -> None:
    rung, now = Rung(rules), dict[int, RungEntry]()
    for entry in changes:
        rung.put(entry)
        now[entry.trial] = entry
        assert rung.chosen() == chosen_anew(list(now.values()), rules)
        groups = groups_of(list(now.values()), rules)
        verdict = rung.verdict(entry.trial)
        group = sorted(groups[verdict.stratum], key=lambda e: (e.loss, e.tie, e.trial))
        assert group[verdict.place - 1] == entry
        assert (verdict.n_strata, verdict.n_compared, verdict.n_known) == (len(groups), len(group), len(now))
        assert verdict.cut_loss == group[verdict.n_chosen - 1].loss
        assert verdict.goes_on == (entry.trial in rung.chosen())


@given(st.lists(st.tuples(scores, st.sampled_from(["score", "stop", "leave"])), max_size=60), rules)
def test_who_waits_and_is_chosen_may_go_on(steps: list[tuple[RungEntry, str]], rules: EarlyStopping) -> None:
    rung, waiting = Rung(rules), list[int]()
    for entry, step in steps:
        if step == "score":
            rung.put(entry)
        elif step == "stop":
            rung.stop(entry.trial)
            waiting += [entry.trial] * (entry.trial not in waiting)
        else:
            rung.leave(entry.trial)
            waiting = [trial for trial in waiting if trial != entry.trial]
        assert rung.promotable() == [trial for trial in waiting if trial in rung.chosen()]


def test_the_best_of_each_base_goes_on() -> None:
    plain = [RungEntry(trial=i, cost=i, loss=-0.9) for i in range(8)]
    quantized = [RungEntry(trial=8 + i, cost=i, loss=-0.5 - 0.1 * i, base="nf4") for i in range(3)]
    assert promotable([*plain, *quantized], EarlyStopping(strata=1)) >= {10}
    assert not promotable([*plain, *quantized], EarlyStopping(strata=1)) & {8, 9}


def test_cost_does_not_decide_within_a_stratum() -> None:
    cheap_and_bad = RungEntry(trial=0, cost=10, loss=-0.5)
    dear_and_good = RungEntry(trial=1, cost=99, loss=-0.9)
    assert promotable([cheap_and_bad, dear_and_good], EarlyStopping()) == {1}
