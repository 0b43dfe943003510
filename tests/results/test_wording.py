import pytest

from autopeft.results.comparison import Difference
from autopeft.results.wording import format_difference, format_score, quality_title
from autopeft.spec.objective import find_objective


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
