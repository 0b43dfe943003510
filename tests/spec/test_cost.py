"""Budgets: limits on a model, and how far an estimate is from them."""

import pytest

from autopeft.errors import BudgetError
from autopeft.spec.cost import Budget, Estimate, Measured, excess
from autopeft.spec.model import ModelSummary

ESTIMATE = Estimate(
    trainable_params=1000,
    head_params=10,
    adapter_bytes=4000,
    base_bytes=10**6,
    peak_memory=2 * 10**6,
    train_flops=10**9,
    inference_flops=10**6,
    serving="merge",
    version="test",
)


def test_a_share_is_of_the_unquantized_base(summary: ModelSummary) -> None:
    limits = Budget(trainable_params="2%", peak_memory="8GiB").resolve(summary)
    assert limits == {"trainable_params": 454_264, "peak_memory": 8 * 2**30}


def test_excess_is_relative_and_feasible_at_the_limit() -> None:
    over = excess({"trainable_params": 1000, "peak_memory": 10**6}, ESTIMATE)
    assert over == {"trainable_params": 0.0, "peak_memory": 1.0}


def test_keywords_and_a_mapping_say_the_same() -> None:
    assert Budget({"trainable_params": "2%"}) == Budget(trainable_params="2%")
    with pytest.raises(BudgetError, match="did you mean 'trainable_params'"):
        Budget(trainable_parms=3)


def test_measurements_add_up_and_peaks_do_not() -> None:
    a = Measured(peak_memory=5, train_seconds=1.0, n_steps=2)
    b = Measured(peak_memory=3, train_seconds=2.0, n_steps=3)
    assert a + b == Measured(peak_memory=5, train_seconds=3.0, n_steps=5)
    assert (a + Measured()).peak_memory == 5
    assert (Measured() + Measured()).peak_memory is None
