"""A study in a few sentences: what was tried, and what the front gains over the yardstick."""

from autopeft.errors import ResultError
from autopeft.results.comparison import Comparer, Comparison
from autopeft.results.front import why_empty
from autopeft.results.selection import best, gain_over_yardstick, knee
from autopeft.results.wording import (
    count_designs,
    format_difference,
    format_ratio,
    format_score,
    marked_words,
    outcome_words,
    outcomes_words,
    reason_words,
    verdict,
)
from autopeft.spec.cost import format_cost
from autopeft.spec.state import StudyState
from autopeft.spec.trial import Outcome, TrialRecord
from autopeft.spec.units import format_count
from autopeft.study.front import pareto_front

_AGAINST = {
    "clearly better": "is clearly better than",
    "clearly worse": "is clearly worse than",
    "within noise: a tie": "ties with",
    "the same answers": "gives the same answers as",
}


def count_words(state: StudyState) -> str:
    """Say how many trials ended in which way: `12 complete, 5 stopped, 3 infeasible; 9 proposals refused`."""
    text = outcomes_words(state.outcomes)
    refused = sum(state.n_refused.values())
    return (text or "no trials") + (
        f"; {refused} {'proposal' if refused == 1 else 'proposals'} refused before training" if refused else ""
    )


def headline(comparer: Comparer) -> str:
    """Say in one sentence what the study found."""
    state = comparer.state
    front = pareto_front(state.trials, state.objectives)
    if not front:
        return f"There is no front yet: {why_empty(state)}."
    top, tied = best(comparer, None, None, {}), best(comparer, None, "1se", {})
    test = state.tests.get(top.number)
    split, scores, errors = (
        ("test", test.scores, test.standard_errors)
        if test is not None
        else ("validation", top.scores, top.standard_errors)
    )
    share = f"{format_score(scores, errors, state.metric)} on {split}"
    cost = state.cost
    text = (
        f"The best of {count_designs(len(front))} on the front reaches {state.quality.label} {share} "
        f"with {format_cost(cost.name, top.value(cost.name))} {cost.label}"
    )
    if tied.number != top.number:
        ratio = format_ratio(tied.value(cost.name), top.value(cost.name))
        text += f"; one with {ratio} less is within one standard error of it"
    yardstick = state.yardstick
    if yardstick is not None and yardstick.number != top.number:
        words = _AGAINST[verdict(comparer.compare(top, yardstick).soundest)]
        text += f"{', and it' if tied.number == top.number else '; it'} {words} the yardstick"
    return text + "."


def gain_sentences(comparer: Comparer) -> list[str]:
    """Say what the front gains over the yardstick, each gain with its standard error and whether it is noise.

    The last ones say that the yardstick is over the budget, where it is, and compare with full fine-tuning, where the
    study has it.

    Numbers are those of the test split where there are any: nothing was chosen by it.
    """
    state = comparer.state
    reference = [sentence for sentence in (yardstick_sentence(state), full_sentence(comparer)) if sentence]
    try:
        gain = gain_over_yardstick(comparer)
    except ResultError as error:
        return [f"Nothing to compare: {error}.", *reference]
    sentences = []
    dearest = gain.overall
    if gain.at_no_more_cost is not None:
        sentences.append(_sentence(state, "At no more cost than the yardstick", gain.at_no_more_cost))
        if gain.at_no_more_cost.trial.number == dearest.trial.number:
            sentences[-1] = _sentence(state, "The best design costs no more than the yardstick", dearest)
    if gain.at_no_more_cost is None or gain.at_no_more_cost.trial.number != dearest.trial.number:
        sentences.append(_sentence(state, "The best design, whatever it costs", dearest))
    for cheap, quality in (
        (gain.cheapest_as_good, "at no worse validation score"),
        (gain.cheapest_tied, "within one standard error of the yardstick on validation"),
    ):
        if cheap is not None and cheap.trial.value(state.cost.name) < gain.yardstick.value(state.cost.name):
            ratio = format_ratio(cheap.trial.value(state.cost.name), gain.yardstick.value(state.cost.name))
            sentences.append(_sentence(state, f"With {ratio} less {state.cost.label}, {quality}", cheap))
            if gain.cheapest_tied is not None and gain.cheapest_tied.trial == cheap.trial:
                break  # the same design is both
    return [*sentences, *reference]


def yardstick_sentence(state: StudyState) -> str:
    """Say that the yardstick was trained although it is over the budget; nothing where it is within."""
    yardstick = state.yardstick
    if yardstick is None or not yardstick.is_over_budget:
        return ""
    return f"The yardstick (trial {yardstick.number}) is no choice: {reason_words(yardstick, state.limits)}."


def full_sentence(comparer: Comparer) -> str:
    """Say how the best design of the front compares with full fine-tuning, or why that was left out; else nothing."""
    state, full = comparer.state, comparer.state.full
    front = pareto_front(state.trials, state.objectives)
    if full is None:
        tried = [trial for trial in state.chains if trial.baseline == "full"]
        ends = "; ".join(f"{outcome_words(t.outcome)}{f', {t.reason}' if t.reason else ''}" for t in tried[-1:])
        return f"Full fine-tuning (trial {tried[-1].number}) gives no reference: {ends}." if ends else ""
    score = format_score(full.scores, full.standard_errors, state.metric)
    text = f"Full fine-tuning (trial {full.number}, {format_count(full.estimate.trainable_params)} parameters)"
    if not front:
        return f"{text} reaches {state.quality.label} {score} on validation."
    comparison = comparer.compare(best(comparer, None, None, {}), full)
    difference = comparison.soundest
    return (
        f"{text} as a reference: the best design, with "
        f"{format_ratio(comparison.trial.estimate.trainable_params, full.estimate.trainable_params)} fewer trainable "
        f"parameters, has {state.quality.label} {format_difference(difference, state.quality)} against it on "
        f"{difference.split}: {verdict(difference)}."
    )


def _sentence(state: StudyState, lead: str, comparison: Comparison) -> str:
    trial = comparison.trial
    who = f"{lead}: {trial.describe()} (trial {trial.number})"
    if trial.number == comparison.reference.number:
        return f"{who}, which is the yardstick itself: no design that costs no more scored better."
    difference = comparison.soundest
    where = difference.split + ("" if difference.paired else ", not paired: predictions are missing")
    amount = format_difference(difference, state.quality)
    text = f"{who}, {state.quality.label} {amount} on {where}: {verdict(difference)}."
    if comparison.test is None:
        text += " This is the split it was chosen on, so the gain looks larger than it is."
    return text


def summarize(state: StudyState, *, interrupted: bool = False, time_is_up: bool = False) -> str:
    """Return the study in a few lines.

    Args:
        state: The study.
        interrupted: Whether a signal ended the search.
        time_is_up: Whether its time limit did.
    """
    lines = [f"Study {state.spec.study_name}: {count_words(state)}."]
    if interrupted:
        lines.append("The search was interrupted; the same call goes on where it stopped.")
    if time_is_up:
        lines.append(time_words(state))
    if unchecked := unchecked_words(state):
        lines.append(unchecked)
    front = pareto_front(state.trials, state.objectives)
    if not front:
        return "\n".join([*lines, f"There is no front: {why_empty(state)}."])
    cheapest, top = front[0], min(front, key=lambda t: state.quality.loss(t.value(state.metric)))
    lines.append(f"Front of {count_designs(len(front))} by {', '.join(o.label for o in state.objectives)}:")
    lines += [
        _line(state, name, trial) for name, trial in (("best", top), ("knee", knee(state)), ("cheapest", cheapest))
    ]
    return "\n".join([*lines, *gain_sentences(Comparer(state))])


def time_words(state: StudyState) -> str:
    """Say what the time limit of a search did not allow."""
    n_started = sum(trial.has_started for trial in state.chains)
    n_waiting = sum(trial.outcome is Outcome.INTERRUPTED and trial.has_started for trial in state.chains)
    waiting = f", {n_waiting} of them cut short" if n_waiting else ""
    return (
        f"Time is up: {n_started} of {state.spec.n_trials} designs started{waiting}; "
        "the same command goes on, with a longer timeout further."
    )


def unchecked_words(state: StudyState) -> str:
    """Say how many designs of the front wait for their score on the test split; an empty string where none does."""
    front = pareto_front(state.trials, state.objectives)
    n_waiting = sum(trial.number not in state.tests for trial in front) if state.facts.get("n_test") else 0
    if not n_waiting:
        return ""
    has, them = ("has", "it") if n_waiting == 1 else ("have", "them")
    who = f"{n_waiting} of {count_designs(len(front))} of the front"
    return f"{who} {has} no test score yet; the same command checks {them}."


def _line(state: StudyState, name: str, trial: TrialRecord) -> str:
    score = format_score(trial.scores, trial.standard_errors, state.metric)
    cost = format_cost(state.cost.name, trial.value(state.cost.name))
    return f"  {name}: {score}, {cost} {state.cost.label}, {marked_words(trial)}, trial {trial.number}"
