"""What both pictures of a front draw, matplotlib's and plotly's: which trials, in which colours, with which ticks."""

from collections.abc import Sequence
from math import isfinite

from autopeft.spec.state import StudyState
from autopeft.spec.trial import Outcome, TrialRecord

# Okabe and Ito's blue, vermilion and green: told apart by people with any kind of colour vision.
FRONT_COLOR = "#0072b2"
YARDSTICK_COLOR = "#d55e00"
FULL_COLOR = "#009e73"
OTHER_COLOR = "#8a9099"


def axis_title(state: StudyState) -> str:
    """Return what a cost axis is called."""
    return f"{state.cost.label} (predicted, log scale)"


def drawn(state: StudyState) -> list[TrialRecord]:
    """Return the trials that have a place over the logarithm of the first cost: every one, the base model left out."""
    return [trial for trial in state.chains if trial.baseline != "base" and trial.value(state.cost.name) > 0]


def full(state: StudyState) -> list[TrialRecord]:
    """Return the full fine-tunings that were scored, one for each learning rate."""
    return [
        trial
        for trial in scored(state.trials, state.metric)
        if trial.baseline == "full" and trial.outcome is Outcome.COMPLETE
    ]


def is_wide(state: StudyState) -> bool:
    """Return whether scores differ so much that only a logarithm shows them all: perplexities from 12 to 4,000."""
    values = [trial.value(state.metric) for trial in scored(state.chains, state.metric)]
    has_scale = state.quality.worst is None and len(values) > 0 and min(values) > 0
    return has_scale and max(values) > 10 * min(values)


def scored(trials: Sequence[TrialRecord], metric: str) -> list[TrialRecord]:
    """Return the trials that have a finite score."""
    return [trial for trial in trials if isfinite(trial.scores.get(metric, float("nan")))]


def cost_ticks(state: StudyState) -> list[float]:
    """Return round values on the first cost's axis: powers of two for bytes, else steps within powers of ten."""
    costs = [trial.value(state.cost.name) for trial in drawn(state)]
    if not costs:
        return []
    low, high = min(costs) / 1.5, max(costs) * 1.5
    if state.cost.unit == "B":
        return [tick for power in range(60) if low <= (tick := 2.0**power) <= high]
    steps = (1, 2, 5) if high / low > 30 else (1, 1.5, 2, 3, 5, 7)
    return [tick for power in range(21) for step in steps if low <= (tick := step * 10.0**power) <= high]


def without_score(state: StudyState) -> list[TrialRecord]:
    """Return the trials that ended before any score."""
    numbers = {trial.number for trial in scored(state.chains, state.metric)}
    return [trial for trial in drawn(state) if trial.number not in numbers]
