import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.errors import DataError
from autopeft.spec.training import Splits
from autopeft.tasks.splits import find_sources, make_splits


def pool(n_rows: int, n_classes: int, n_groups: int = 0, seed: int = 0) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    rows = pd.DataFrame({"label": generator.integers(0, n_classes, n_rows).astype(str)})
    if n_groups:
        rows["group"] = generator.integers(0, n_groups, n_rows)
    return rows


sizes = st.integers(min_value=30, max_value=400)


@given(n=sizes, k=st.integers(1, 6), share=st.floats(0.05, 0.3), seed=st.integers(0, 99))
def test_stratified_splits_are_disjoint_complete_and_proportional(n: int, k: int, share: float, seed: int) -> None:
    rows = pool(n, k, seed=seed)
    splits = make_splits(rows, {"validation": share, "test": share}, seed=seed)
    together = np.concatenate(list(splits.values()))
    assert sorted(together) == list(range(n))
    assert len(splits["test"]) == max(1, round(share * n))
    assert all((np.diff(part) > 0).all() for part in splits.values() if len(part) > 1), "the order of the data is kept"
    assert set(rows["label"][splits["train"]]) == set(rows["label"]), "every class is in training"
    for part in splits.values():
        for label, expected in (rows["label"].value_counts() * len(part) / n).items():
            assert abs((rows["label"][part] == label).sum() - expected) <= 2


@given(n=sizes, groups=st.integers(8, 30), share=st.floats(0.1, 0.3), seed=st.integers(0, 99))
def test_groups_never_cross_and_no_row_is_lost(n: int, groups: int, share: float, seed: int) -> None:
    rows = pool(n, 2, groups, seed=seed)
    splits = make_splits(rows, {"validation": share, "test": share}, seed=seed)
    assert sorted(np.concatenate(list(splits.values()))) == list(range(n))
    homes = [set(rows["group"][part]) for part in splits.values()]
    assert sum(map(len, homes)) == len(set().union(*homes)) == rows["group"].nunique()
    largest = rows["group"].value_counts().max()
    assert abs(len(splits["test"]) - share * n) <= largest


@given(seed=st.integers(0, 99))
def test_counts_are_exact_with_groups_and_without(seed: int) -> None:
    wanted = {"train": 100.0, "validation": 30.0, "test": 20.0}
    for groups in (0, 25):
        rows = pool(400, 3, groups, seed=seed)
        splits = make_splits(rows, wanted, seed=seed)
        assert {role: len(part) for role, part in splits.items()} == wanted
        if groups:
            homes = [set(rows["group"][part]) for part in splits.values()]
            assert sum(map(len, homes)) == len(set().union(*homes))


@pytest.mark.parametrize("groups", [0, 20])
def test_the_seed_decides(groups: int) -> None:
    rows = pool(200, 2, groups)
    made = {"validation": 0.2, "test": 0.2}
    first, again, other = (make_splits(rows, made, seed=seed) for seed in (1, 1, 2))
    assert all(np.array_equal(first[role], again[role]) for role in first)
    assert not np.array_equal(first["test"], other["test"])


@pytest.mark.parametrize(
    ("made", "n_groups", "message"),
    [
        ({"train": 90.0, "validation": 20.0}, 0, r"train 90, validation 20 were asked of 100 rows"),
        ({"validation": 100.0}, 0, r"asked of 100 rows"),
        ({"validation": 1.5}, 0, r"splits.validation must be a share below 1 or a whole number.*1.5"),
        ({"validation": 0.2, "test": 0.2}, 1, r"1 groups .* leave 0 rows"),
        ({"validation": 0.2, "test": 0.2}, 2, r"leave 0 rows"),
    ],
)
def test_impossible_splits_are_refused(made: dict[str, float], n_groups: int, message: str) -> None:
    rows = pool(100, 2)
    if n_groups:
        rows["group"] = [row % n_groups for row in range(100)]
    with pytest.raises(DataError, match=message):
        make_splits(rows, made, seed=0)


def test_sources_are_named_given_or_made() -> None:
    sources = find_sources(["train", "dev", "test"], Splits())
    assert (sources.pool, sources.given, sources.made) == ("train", {"validation": "dev", "test": "test"}, {})
    sources = find_sources(["train", "validation", "test"], Splits(train=500, test=0.1))
    assert (sources.given, sources.made) == ({"validation": "validation"}, {"train": 500, "test": 0.1})
    sources = find_sources(["a", "b"], Splits(train="b", test="a"))
    assert (sources.pool, sources.given, set(sources.made)) == ("b", {"test": "a"}, {"validation"})
    sources = find_sources(["Dev", "Train", "TEST"], Splits())
    assert (sources.pool, sources.given) == ("Train", {"validation": "Dev", "test": "TEST"})
    sources = find_sources(["all"], Splits())
    assert (sources.pool, set(sources.made)) == ("all", {"validation", "test"})


@pytest.mark.parametrize(
    ("available", "splits", "message"),
    [
        (["train", "test"], Splits(validation="valid"), "splits.validation must name a split.*'valid'"),
        (["train", "test"], Splits(validation="test", test="test"), "'test' is used twice"),
        (["a", "b"], Splits(), "splits.train must name the split"),
        (["test", "train"], Splits(train="train-00000-of-00002"), "shards of 'train' are put together: name that"),
    ],
)
def test_unclear_sources_are_refused(available: list[str], splits: Splits, message: str) -> None:
    with pytest.raises(DataError, match=message):
        find_sources(available, splits)
