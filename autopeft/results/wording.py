"""How results are written for people: one wording for the terminal, the plots and the report."""

from collections.abc import Mapping
from math import isfinite

from autopeft.results.comparison import Difference, interval
from autopeft.spec.cost import format_cost
from autopeft.spec.design import Serving
from autopeft.spec.objective import OBJECTIVES, find_objective
from autopeft.spec.trial import Outcome, TrialRecord

MISSING = "–"
SERVING: dict[Serving, str] = {"merge": "mergeable", "peft": "stock PEFT", "autopeft": "autopeft only"}
"""What each way of serving is called."""


def outcome_words(outcome: Outcome) -> str:
    """Return an outcome as words."""
    return outcome.value.replace("_", " ")


def count_designs(number: int) -> str:
    """Write a number of designs: `1 design`, `7 designs`."""
    return f"{number} design" if number == 1 else f"{number} designs"


def format_score(scores: Mapping[str, float], standard_errors: Mapping[str, float], name: str) -> str:
    """Write a score with its standard error: `0.806 ± 0.016`."""
    value, error = scores.get(name, float("nan")), standard_errors.get(name, float("nan"))
    if not isfinite(value):
        return MISSING
    return f"{value:.3f} ± {error:.3f}" if isfinite(error) else f"{value:.3f}"


def format_interval(scores: Mapping[str, float], standard_errors: Mapping[str, float], name: str) -> str:
    """Write the 95 % interval of a score: `0.775 to 0.837`; nothing where there is none."""
    value, error = scores.get(name, float("nan")), standard_errors.get(name, float("nan"))
    if not (isfinite(value) and isfinite(error)):
        return ""
    low, high = interval(value, error, find_objective(name))
    return f"{low:.3f} to {high:.3f}"


def format_difference(difference: Difference) -> str:
    """Write a difference with its standard error and interval."""
    low, high = difference.interval
    text = f"{_signed(difference.value)} ± {difference.standard_error:.3f}"
    return f"{text} (95 % interval {_signed(low)} to {_signed(high)})"


def verdict(difference: Difference) -> str:
    """Say whether a difference can be told from noise."""
    if difference.is_clear:
        return "clearly better" if difference.value > 0 else "clearly worse"
    if difference.value == 0 and difference.standard_error == 0:
        return "the same answers"
    return "within noise: a tie"


def format_ratio(smaller: float, larger: float) -> str:
    """Write how many times one cost goes into another: `3.2x`."""
    ratio = larger / smaller if smaller else float("inf")
    return f"{ratio:.1f}x" if ratio < 9.95 else f"{ratio:.0f}x"


def reason_words(record: TrialRecord, limits: Mapping[str, int]) -> str:
    """Return why a trial ended as it did; of one over the budget, by how much."""
    over = [
        f"{OBJECTIVES[name].label} {format_cost(name, record.estimate.cost(name))} is {value:.0%} over the limit"
        + (f" of {format_cost(name, limits[name])}" if name in limits else "")
        for name, value in record.excess.items()
        if value > 0
    ]
    return "; ".join(over) if over and record.outcome is Outcome.INFEASIBLE else record.reason


def _signed(value: float) -> str:
    """Write a number with its sign and a real minus; zero has none."""
    text = f"{value:+.3f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")
