import pandas as pd
import pytest

from autopeft.results.result import SearchResult
from autopeft.spec.objective import COSTS
from autopeft.spec.state import StudyState
from autopeft.spec.trial import Outcome
from tests.results.generated import FULL, LIMITS, Builder, lora


@pytest.fixture
def table(result: SearchResult) -> pd.DataFrame:
    return result.leaderboard().set_index("number")


def test_every_trial_is_there_with_each_chain_once(table: pd.DataFrame, state: StudyState) -> None:
    numbers = {trial.number for trial in state.trials}
    assert set(table.index) == numbers - {12, 19}  # trial 18 continues 12, trial 20 continues 19
    assert table.index.is_unique
    assert table.outcome.value_counts().to_dict() == {
        "complete": 12, "stopped": 3, "infeasible": 2, "failed": 1, "out_of_memory": 1, "interrupted": 1,
    }  # fmt: skip


def test_columns_are_scores_tests_costs_and_how_it_ended(table: pd.DataFrame, state: StudyState) -> None:
    best = table.loc[18]
    assert best["accuracy"] == state.trials[18].scores["accuracy"]
    assert best["accuracy_se"] == state.trials[18].standard_errors["accuracy"]
    assert best["test_matthews"] == state.tests[18].scores["matthews"]
    assert best["test_matthews_se"] == state.tests[18].standard_errors["matthews"]
    for name in COSTS:
        assert best[name] == state.trials[18].estimate.cost(name)
    assert best["measured_peak_memory"] == state.trials[18].measured.peak_memory
    assert best["train_seconds"] == state.trials[18].measured.train_seconds
    assert best["design"] == state.trials[18].design.describe()
    assert table["examples_share"].to_dict()[13] == 0.5
    assert (table.loc[18, "serving"], table.loc[7, "serving"]) == ("autopeft only", "mergeable")
    assert table["baseline"].to_dict()[0] == "yardstick"
    assert pd.isna(table.loc[7, "test_accuracy"])
    assert pd.isna(table.loc[15, "measured_peak_memory"])


def test_the_front_is_marked(table: pd.DataFrame, result: SearchResult) -> None:
    assert set(table.index[table["front"]]) == {record.number for record in result.front}


def test_what_is_over_the_budget_says_by_how_much(table: pd.DataFrame) -> None:
    assert table.loc[15, "excess"] == pytest.approx(1_340_000 / LIMITS["trainable_params"] - 1)
    assert table.loc[15, "reason"] == (
        "trainable parameters 1.34M is 198% over the limit of 450k; "
        "peak memory 700.0 MiB is 17% over the limit of 600.0 MiB"
    )
    assert (table.loc[table["outcome"] == "complete", "excess"] <= 0).all()


def test_measured_peaks_stand_beside_the_predicted_ones(table: pd.DataFrame) -> None:
    known = table[table["measured_peak_memory"].notna()]
    expected = (known["measured_peak_memory"] - known["peak_memory"]) / known["peak_memory"]
    pd.testing.assert_series_equal(known["peak_memory_error"], expected, check_names=False)
    assert 0 < len(known) < len(table)
    assert table.loc[table["measured_peak_memory"].isna(), "peak_memory_error"].isna().all()


def test_complete_trials_come_first_and_the_best_of_them_on_top(table: pd.DataFrame) -> None:
    complete = table["outcome"] == "complete"
    assert complete.tolist() == sorted(complete, reverse=True)
    assert table.loc[complete, "accuracy"].is_monotonic_decreasing
    assert table["outcome"].iloc[-1] == "infeasible"


def test_a_study_without_trials_has_a_table_without_rows(build: Builder) -> None:
    table = SearchResult(build.state()).leaderboard()
    assert len(table) == 0
    assert {"number", "accuracy", "test_accuracy_se", *COSTS} <= set(table.columns)


def test_thousands_of_trials_are_no_burden(build: Builder) -> None:
    first = build.add(lora(1), params=1000, skill=0.7)
    fields = {**vars(first), "outcome": Outcome.STOPPED, "examples": FULL // 4}
    many = tuple(type(first)(**{**fields, "number": number}) for number in range(1, 3000))
    assert len(SearchResult(build.state(trials=(first, *many))).leaderboard()) == 3000
