"""Which design to take: the best, the cheapest that ties with it, the knee; and the gain over the yardstick."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log10

from autopeft.errors import ResultError
from autopeft.results.comparison import Comparer, Comparison
from autopeft.results.front import why_empty
from autopeft.results.leaderboard import metric_names
from autopeft.results.wording import outcome_words, reason_words
from autopeft.spec.cost import Budget, format_cost
from autopeft.spec.messages import one_of
from autopeft.spec.objective import COSTS, OBJECTIVES, find_objective
from autopeft.spec.state import StudyState
from autopeft.spec.trial import TrialRecord
from autopeft.study.front import eligible, pareto_front


def candidates(state: StudyState, metric: str, limits: Mapping[str, str | float]) -> tuple[TrialRecord, ...]:
    """Return the front over one metric and the study's costs, of the trials within the limits; cheapest first.

    It is computed anew: under a limit on something that the study did not optimise, the answer may lie off the
    study's own front.

    Raises:
        ResultError: The metric was not measured, or nothing is within the limits.
        BudgetError: A limit cannot be read.
    """
    known = metric_names(state)
    if metric not in known:
        raise ResultError(f"a metric that the study has scores of {one_of(known, metric)}")
    yardstick = next((trial.estimate for trial in state.trials if trial.baseline == "yardstick"), None)
    amounts = Budget(limits).resolve(state.model, None if yardstick is None else lambda: yardstick)
    scored = [trial for trial in state.trials if metric in trial.scores]
    within = [t for t in scored if all(t.estimate.cost(name) <= limit for name, limit in amounts.items())]
    objectives = (find_objective(metric), *(o for o in state.objectives if o.kind == "cost"))
    front = pareto_front(within, objectives)
    if front:
        return front
    finished = eligible(scored)
    if not finished:
        raise ResultError(why_empty(state))
    smallest = {name: min(trial.estimate.cost(name) for trial in finished) for name in amounts}
    for name, limit in amounts.items():
        if smallest[name] > limit:
            raise ResultError(
                f"{OBJECTIVES[name].label} <= {format_cost(name, limit)} must hold, but the smallest design that "
                f"trained in full has {format_cost(name, smallest[name])}; raise {name}"
            )
    raise ResultError(
        f"a design must meet every limit at once, but of {len(finished)} that trained in full each exceeds one of "
        f"{', '.join(amounts)}; raise one of them"
    )


def best(comparer: Comparer, metric: str | None, within: str | None, limits: Mapping[str, str | float]) -> TrialRecord:
    """Return the best design by a metric, or the cheapest that ties with it; see `SearchResult.best`."""
    if within not in (None, "1se"):
        raise ResultError(f"within {one_of(('1se',), within)}, or leave it out")
    state = comparer.state
    name = metric or state.metric
    if name in COSTS:
        if within is not None:
            raise ResultError(f"within='1se' needs a quality metric, because costs are exact, but got {name}")
        return min(candidates(state, state.metric, limits), key=lambda trial: trial.estimate.cost(name))
    front = candidates(state, name, limits)
    objective = find_objective(name)
    top = min(front, key=lambda trial: objective.loss(trial.value(name)))
    return top if within is None else _cheapest_tied(comparer, front, top, name)


def _cheapest_tied(comparer: Comparer, front: Sequence[TrialRecord], top: TrialRecord, metric: str) -> TrialRecord:
    for trial in sorted(front, key=lambda trial: trial.value(comparer.state.cost.name)):
        gap = comparer.difference(top, trial, metric, "validation")
        if gap is not None and gap.value <= gap.standard_error:
            return trial
    return top


def knee(state: StudyState) -> TrialRecord:
    """Return the design after which more cost buys least; see `SearchResult.knee`."""
    objectives = (state.quality, state.cost)
    front = pareto_front(state.trials, objectives)
    if not front:
        raise ResultError(why_empty(state))
    costs = [log10(max(trial.value(state.cost.name), 1.0)) for trial in front]
    losses = [state.quality.loss(trial.value(state.metric)) for trial in front]
    if len(front) < 3:
        return front[-1]
    # On a front cost rises and loss falls from one design to the next, so neither range can be zero.
    heights = [
        (losses[0] - loss) / (losses[0] - losses[-1]) - (cost - costs[0]) / (costs[-1] - costs[0])
        for cost, loss in zip(costs, losses, strict=True)
    ]
    highest = max(range(len(front)), key=heights.__getitem__)
    return front[highest] if heights[highest] > 0 else front[-1]


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What the front has over the yardstick; each comparison is against the yardstick.

    Attributes:
        at_no_more_cost: The best front design that costs no more in any cost objective; None where there is none.
        cheapest_as_good: The cheapest front design whose score is no worse; None where there is none.
        cheapest_tied: The cheapest front design that the yardstick is better than by no more than one standard error
            of their paired difference on the validation split; None where there is none.
        overall: The best front design, whatever it costs.
    """

    yardstick: TrialRecord
    at_no_more_cost: Comparison | None
    cheapest_as_good: Comparison | None
    cheapest_tied: Comparison | None
    overall: Comparison


def gain_over_yardstick(comparer: Comparer) -> Gain:
    """Compare the front with the yardstick; see `SearchResult.gain_over_yardstick`."""
    state, yardstick = comparer.state, comparer.state.yardstick
    front = pareto_front(state.trials, state.objectives)
    if not front:
        raise ResultError(why_empty(state))
    if yardstick is None:
        raise ResultError(_why_no_yardstick(state))

    def loss(trial: TrialRecord) -> float:
        return state.quality.loss(trial.value(state.metric))

    costs = [objective.name for objective in state.objectives if objective.kind == "cost"]
    no_dearer = [t for t in front if all(t.value(name) <= yardstick.value(name) for name in costs)]
    as_good = [trial for trial in front if loss(trial) <= loss(yardstick)]
    tied = _cheapest_tied(comparer, front, yardstick, state.metric)
    cheapest = min(as_good, key=lambda trial: trial.value(costs[0]), default=None)
    return Gain(
        yardstick=yardstick,
        at_no_more_cost=comparer.compare(min(no_dearer, key=loss), yardstick) if no_dearer else None,
        cheapest_as_good=comparer.compare(cheapest, yardstick) if cheapest is not None else None,
        cheapest_tied=comparer.compare(tied, yardstick) if tied in front else None,
        overall=comparer.compare(min(front, key=loss), yardstick),
    )


def _why_no_yardstick(state: StudyState) -> str:
    tried = [trial for trial in state.chains if trial.baseline == "yardstick"]
    if not tried:
        return "the study has no yardstick to compare with; set yardstick to a design in the study file"
    last = tried[-1]
    why = f" ({words})" if (words := reason_words(last, state.limits)) else ""
    return f"the yardstick (trial {last.number}) did not train in full: it is {outcome_words(last.outcome)}{why}"
