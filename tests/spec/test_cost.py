"""Budgets: limits on a model, and how far an estimate is from them."""

import pytest

from autopeft.errors import BudgetError
from autopeft.spec.cost import Budget, Estimate, Measured, excess, format_limits
from autopeft.spec.model import ModelSummary
from autopeft.spec.objective import COSTS

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


def test_a_multiple_is_of_what_the_yardstick_costs(summary: ModelSummary) -> None:
    budget = Budget(peak_memory="0.9 x Yardstick", trainable_params="1.5x yardstick", adapter_bytes="1kB")
    limits = budget.resolve(summary, lambda: ESTIMATE)
    assert limits == {"peak_memory": 1_800_000, "trainable_params": 1500, "adapter_bytes": 1000}
    assert budget.relative == {"peak_memory": "0.9x yardstick", "trainable_params": "1.5x yardstick"}
    words = "peak_memory 1.7 MiB (0.9x yardstick), trainable_params 1.5k (1.5x yardstick), adapter_bytes 1000 B"
    assert format_limits(limits, budget.limits) == words
    assert format_limits(limits) == "peak_memory 1.7 MiB, trainable_params 1.5k, adapter_bytes 1000 B"


@pytest.mark.parametrize("name", COSTS)
def test_every_cost_can_be_limited_relative_to_the_yardstick(name: str, summary: ModelSummary) -> None:
    assert Budget({name: "2x yardstick"}).resolve(summary, lambda: ESTIMATE) == {name: 2 * ESTIMATE.cost(name)}


def test_the_yardstick_is_asked_only_where_a_limit_needs_it(summary: ModelSummary) -> None:
    limits = Budget(peak_memory="1kB").resolve(summary, lambda: pytest.fail("nothing is relative to it"))
    assert limits == {"peak_memory": 1000}
    with pytest.raises(BudgetError, match=r"budget.peak_memory must be an amount where there is no yardstick"):
        Budget(peak_memory="0.9x yardstick").resolve(summary)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("0x yardstick", "above 0x and at most 1,000x yardstick, but got '0x yardstick'"),
        ("5000x yardstick", "above 0x and at most 1,000x yardstick"),
        ("1e999x yardstick", "above 0x and at most 1,000x yardstick"),
        ("-1x yardstick", "such as '0.9x yardstick', but got '-1x yardstick'"),
        ("90% of yardstick", "such as '0.9x yardstick', but got '90% of yardstick'"),
        ("0.9 yardstick", "such as '0.9x yardstick', but got '0.9 yardstick'"),
        ("0.9x full", "must be a multiple of the yardstick's cost, such as '0.9x yardstick', but got '0.9x full'"),
        ("0.9x", "'8GiB', or a multiple of the yardstick's cost such as '0.9x yardstick', but got '0.9x'"),
        ("9" * 5000 + "!", r"but got '9{70,}\.\.\.9+!'$"),
    ],
)
def test_a_limit_that_is_not_understood_is_named(value: str, message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        Budget(peak_memory=value)


def test_a_limit_below_one_is_refused(summary: ModelSummary) -> None:
    with pytest.raises(BudgetError, match=r"budget.trainable_params >= 1 must hold, but '0.0001x yardstick' is less"):
        Budget(trainable_params="0.0001x yardstick").resolve(summary, lambda: ESTIMATE)


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
