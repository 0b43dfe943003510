from dataclasses import replace
from pathlib import Path

import pytest

from autopeft.results.comparison import Difference
from autopeft.results.leaderboard import make_leaderboard
from autopeft.results.notes import trial_note
from autopeft.results.summary import summarize
from autopeft.results.terminal import leaderboard_table
from autopeft.results.wording import format_difference, format_score, limit_words, marked_words, quality_title
from autopeft.spec.objective import find_objective
from autopeft.spec.study import make_study
from tests.results.generated import LIMITS, Builder, lora


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.8064, 0.0161, "0.806 ± 0.016"),
        (2.3456, 0.0123, "2.346 ± 0.012"),
        (23.456, 0.123, "23.46 ± 0.12"),
        (234.56, 1.23, "234.6 ± 1.2"),
        (12345.6, 123.4, "12,346 ± 123"),
        (0.5, float("nan"), "0.500"),
        (float("nan"), 0.1, "–"),
    ],
)
def test_scores_have_as_many_digits_as_say_something(value: float, error: float, text: str) -> None:
    assert format_score({"loss": value}, {"loss": error}, "loss") == text


def test_a_gain_has_the_sign_of_its_metric() -> None:
    gain = Difference(value=0.03, standard_error=0.01, split="test")
    accuracy, loss = find_objective("accuracy"), find_objective("loss")
    assert format_difference(gain, accuracy) == "+0.030 ± 0.010 (95 % interval +0.010 to +0.050)"
    assert format_difference(gain, loss) == "−0.030 ± 0.010 (95 % interval −0.050 to −0.010; lower is better)"


def test_axes_say_which_way_is_good_where_it_is_not_up() -> None:
    assert quality_title(find_objective("accuracy")) == "accuracy on validation"
    assert quality_title(find_objective("perplexity")) == "perplexity on validation (lower is better)"


def test_a_yardstick_over_the_budget_is_called_a_reference_everywhere(tmp_path: Path) -> None:
    build = Builder(folder=tmp_path / "reviews")
    over = build.add(lora(32), params=10 * LIMITS["trainable_params"], skill=0.8, tested=True, baseline="yardstick")
    build.add(lora(1), params=150_146, skill=0.75, tested=True)
    state = build.state()
    assert marked_words(over).endswith("(yardstick, over the budget)")
    (row,) = make_leaderboard(state)[lambda table: table.baseline == "yardstick"].to_dict("records")
    assert row["reason"].endswith("over the limit of 450k; over the budget, trained as a reference")
    assert not row["front"]
    (said,) = [
        line for line in summarize(state).splitlines() if line.startswith("The yardstick (trial 0) is no choice")
    ]
    assert "trainable parameters 4.5M is 900% over the limit of 450k" in said
    assert "A baseline: the yardstick, over the budget and trained as a reference." in trial_note(state, over)
    design = next(column for column in leaderboard_table(state).columns if column.name == "design")
    assert any("(yardstick, over the budget)" in cell for cell in design.cells)


def test_a_relative_limit_is_said_beside_the_amount(tmp_path: Path) -> None:
    state = Builder(folder=tmp_path / "reviews").state(limits={"peak_memory": 2**20})
    assert limit_words(state) == ["peak memory ≤ 1.0 MiB"]
    spec = make_study({"model": "m", "data": "d.csv", "budget": {"peak_memory": "0.90x yardstick"}})
    assert limit_words(replace(state, spec=spec)) == ["peak memory ≤ 1.0 MiB (0.9x yardstick)"]
