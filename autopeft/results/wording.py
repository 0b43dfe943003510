"""How results are written for people: one wording for the terminal, the plots and the report."""

from collections.abc import Mapping
from math import isfinite

from autopeft.errors import StudyError
from autopeft.results.comparison import Difference, interval
from autopeft.spec.cost import OVER_BUDGET, Budget, format_cost
from autopeft.spec.design import Serving
from autopeft.spec.objective import OBJECTIVES, Objective, find_objective
from autopeft.spec.state import StudyState
from autopeft.spec.trial import Outcome, TrialRecord

MISSING = "–"
BASELINE_MARKS = {"yardstick": "yardstick", "head": "baseline", "base": "base model", "full": "reference"}
"""What each baseline is marked with beside its design."""
SERVING: dict[Serving, str] = {"merge": "mergeable", "peft": "stock PEFT", "autopeft": "autopeft only"}
"""What each way of serving is called."""


def label_words(name: str) -> str:
    """Return what people call a metric, a cost, or another reason to refuse a proposal."""
    try:
        return find_objective(name).label
    except StudyError:
        return name.replace("_", " ")


def limit_words(state: StudyState) -> list[str]:
    """Say each limit of a study's budget: `peak memory ≤ 240.0 MiB (0.9x yardstick)`."""
    relative = Budget(state.spec.budget).relative
    return [
        f"{label_words(name)} ≤ {format_cost(name, limit)}" + (f" ({relative[name]})" if name in relative else "")
        for name, limit in state.limits.items()
    ]


def outcome_words(outcome: Outcome) -> str:
    """Return an outcome as words."""
    return outcome.value.replace("_", " ")


def outcomes_words(counts: Mapping[Outcome, int]) -> str:
    """Say how many trials ended in which way: `12 complete, 5 stopped`; nothing where there are none."""
    return ", ".join(f"{counts[outcome]} {outcome_words(outcome)}" for outcome in Outcome if counts[outcome])


def serving_words(trial: TrialRecord) -> str:
    """Say how a trained design is served; the base model as it is needs nothing, and a fine-tuned one is its own."""
    return {"base": "as it is", "full": "a whole model"}.get(trial.baseline) or SERVING[trial.estimate.serving]


def mark(trial: TrialRecord) -> str:
    """Return what a baseline is marked with: `yardstick`, or `yardstick, over the budget`; nothing for a design."""
    words = BASELINE_MARKS.get(trial.baseline, "")
    return f"{words}, over the budget" if words and trial.is_over_budget else words


def marked_words(trial: TrialRecord) -> str:
    """Say what was trained, with the baseline's mark behind it: `LoRA r=8 on query, value (yardstick)`."""
    return trial.describe() + (f" ({mark(trial)})" if trial.baseline else "")


def direction_words(objective: Objective) -> str:
    """Say which way is good, for a metric where that is not what most people expect; else nothing."""
    return "lower is better" if objective.kind == "quality" and objective.direction == "minimize" else ""


def quality_title(objective: Objective) -> str:
    """Return what an axis of a quality metric is called: `perplexity on validation (lower is better)`."""
    direction = direction_words(objective)
    return f"{objective.label} on validation" + (f" ({direction})" if direction else "")


def decimals(value: float) -> int:
    """Return how many decimals a score is written with: three, and fewer from 10 on (a perplexity of 1,234)."""
    return next((places for limit, places in ((10, 3), (100, 2), (1000, 1)) if abs(value) < limit), 0)


def format_share(trial: TrialRecord, n_parameters: int) -> str:
    """Write the trainable share of the base model: `0.54 %`, `0.0034 %`."""
    return f"{100 * trial.estimate.trainable_params / n_parameters:.2g} %"


def count_designs(number: int) -> str:
    """Write a number of designs: `1 design`, `7 designs`."""
    return f"{number} design" if number == 1 else f"{number} designs"


def format_score(scores: Mapping[str, float], standard_errors: Mapping[str, float], name: str) -> str:
    """Write a score with its standard error: `0.806 ± 0.016`."""
    value, error = scores.get(name, float("nan")), standard_errors.get(name, float("nan"))
    if not isfinite(value):
        return MISSING
    places = decimals(value)
    return f"{value:,.{places}f} ± {error:,.{places}f}" if isfinite(error) else f"{value:,.{places}f}"


def format_interval(scores: Mapping[str, float], standard_errors: Mapping[str, float], name: str) -> str:
    """Write the 95 % interval of a score: `0.775 to 0.837`; nothing where there is none."""
    value, error = scores.get(name, float("nan")), standard_errors.get(name, float("nan"))
    if not (isfinite(value) and isfinite(error)):
        return ""
    low, high = interval(value, error, find_objective(name))
    places = decimals(value)
    return f"{low:,.{places}f} to {high:,.{places}f}"


def format_difference(difference: Difference, objective: Objective) -> str:
    """Write a difference with its standard error and interval, with the sign that the metric itself has.

    A `Difference` is positive where the first design is better; of a metric that is better when lower, such a
    difference is written as the fall that it is.
    """
    low, high = difference.interval
    value = difference.value
    if objective.direction == "minimize":
        value, low, high = -value, -high, -low
    places = decimals(max(abs(low), abs(high)))
    text = f"{_signed(value, places)} ± {difference.standard_error:,.{places}f}"
    direction = f"; {words}" if (words := direction_words(objective)) else ""
    return f"{text} (95 % interval {_signed(low, places)} to {_signed(high, places)}{direction})"


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
    """Return why a trial ended as it did; of one whose estimate is over the budget, by how much.

    A baseline over the budget is trained all the same: then it is said that it is a reference.
    """
    over = [
        f"{OBJECTIVES[name].label} {format_cost(name, record.estimate.cost(name))} is {value:.0%} over the limit"
        + (f" of {format_cost(name, limits[name])}" if name in limits else "")
        for name, value in record.excess.items()
        # Over a limit by what trials measured alone: the record's own reason says so.
        if value > 0 and record.estimate.cost(name) > limits.get(name, 0)
    ]
    if not over:
        return record.reason
    if record.outcome is Outcome.INFEASIBLE:
        return record.reason if record.baseline and record.reason else "; ".join(over)
    return "; ".join([*([record.reason] if record.reason else []), *over, OVER_BUDGET])


def _signed(value: float, places: int) -> str:
    """Write a number with its sign and a real minus; zero has none."""
    text = f"{value:+,.{places}f}"
    return text[1:] if float(text.replace(",", "")) == 0 else text.replace("-", "−")
