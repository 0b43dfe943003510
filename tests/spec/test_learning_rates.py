"""The measured rates: what a prior is, and what a technique has that nobody measured."""

from collections.abc import Iterator

import pytest

from autopeft.errors import SpaceError
from autopeft.spec import learning_rates
from autopeft.spec.block import block_class, block_kinds
from autopeft.spec.learning_rates import HEAD, default_learning_rate, prior


@pytest.fixture
def table(tmp_path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:  # type: ignore[no-untyped-def]
    """Return a function that puts another table in the place of the shipped one."""

    def write(text: str) -> None:
        (tmp_path / learning_rates.TABLE).write_text(text)
        monkeypatch.setattr(learning_rates, "files", lambda _package: tmp_path)
        learning_rates._best_rates.cache_clear()

    yield write
    learning_rates._best_rates.cache_clear()


def test_a_prior_goes_from_a_tenth_of_the_lowest_to_twice_the_highest(table) -> None:  # type: ignore[no-untyped-def]
    table("best:\n  lora: {A: 1e-3, B: 4e-3}\n  head: {A: 3e-3}\n")
    assert (prior("lora").low, prior("lora").high, prior("lora").log) == (1e-4, 8e-3, True)
    assert default_learning_rate("lora") == 8.9e-4  # the middle, on a log scale
    assert (prior(HEAD).low, prior(HEAD).high) == (3e-4, 6e-3)


def test_what_nobody_measured_has_its_class_default(table) -> None:  # type: ignore[no-untyped-def]
    table("best: {}\n")
    rate = block_class("ia3").default_learning_rate
    assert default_learning_rate("ia3") == rate
    assert (prior("ia3").low, prior("ia3").high) == pytest.approx((rate / 3, rate * 3))
    assert default_learning_rate(HEAD) == 1e-3


@pytest.mark.parametrize("text", ["rates: {}\n", "best: 3\n", "best: {lora: 1e-3}\n", "best: {lora: {}}\n"])
def test_a_broken_table_says_how_to_make_one(table, text: str) -> None:  # type: ignore[no-untyped-def]
    table(text)
    with pytest.raises(SpaceError, match=r"learning_rates.yaml must have .* write it with python"):
        prior("lora")


def test_the_shipped_table_names_techniques_that_there_are() -> None:
    assert set(learning_rates._best_rates()) <= {HEAD, *block_kinds()}
    for kind in block_kinds():
        assert 0 < prior(kind).low < default_learning_rate(kind) < prior(kind).high
