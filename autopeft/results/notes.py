"""A trial and a study in a few lines of Markdown, as Optuna Dashboard shows them."""

from collections.abc import Sequence
from math import isfinite
from shlex import quote

from autopeft.results.wording import (
    MISSING,
    format_score,
    label_words,
    limit_words,
    outcome_words,
    outcomes_words,
    reason_words,
)
from autopeft.spec.cost import format_cost
from autopeft.spec.objective import COSTS, OBJECTIVES
from autopeft.spec.state import StudyState
from autopeft.spec.trial import Outcome, TrialRecord
from autopeft.spec.units import format_bytes, format_seconds
from autopeft.study.folder import StudyFolder
from autopeft.study.front import pareto_front

_BASELINES = {
    "yardstick": "the yardstick",
    "head": "the new modules alone",
    "base": "the base model as it is",
    "full": "the whole model, whatever the budget says",
}


def study_note(state: StudyState) -> str:
    """Return what a study asks, how far it is and what its front holds."""
    rows = [
        [
            str(record.number),
            _code(record.describe()),
            format_cost(state.cost.name, record.estimate.cost(state.cost.name)),
            format_score(record.scores, record.standard_errors, state.metric),
        ]
        for record in pareto_front(state.trials, state.objectives)
    ]
    budget = ", ".join(limit_words(state)) or "none"
    lines = [
        f"{_code(state.spec.model)} on {_code(state.spec.data)}; budget: {budget}.",
        outcomes_words(state.outcomes) or "No trial yet.",
    ]
    if refused := sum(state.n_refused.values()):
        lines.append(f"{refused} proposals were refused before training; a few of them are in the list as infeasible.")
    if rows:
        lines += [
            "**The front**",
            _table(["trial", "design", state.cost.label, f"validation {state.quality.label}"], rows),
        ]
    lines.append("This page shows the study and cannot change it.")
    return "\n\n".join(lines)


def trial_note(state: StudyState, trial: TrialRecord) -> str:
    """Return a trial's design in words, its outcome with the reason, its scores, and predicted and measured cost."""
    title = f"**{outcome_words(trial.outcome)}**"
    if reason := reason_words(trial, state.limits):
        title += f": {_code(reason)}"
    lines = [_code(trial.describe()), title]
    if trial.baseline:
        over = ", over the budget and trained as a reference" if trial.is_over_budget else ""
        lines.append(f"A baseline: {_BASELINES[trial.baseline]}{over}.")
    if trial.continues is not None:
        lines.append(f"Goes on from trial {trial.continues}.")
    if scores := _scores(state, trial):
        lines.append(scores)
    lines.append(_costs(state, trial))
    rates = ", ".join(f"{name} {rate:.2g}" for name, rate in trial.learning_rates.items())
    lines.append(f"Learning rates: {rates}. Trained on {trial.examples:,} of {state.n_full_examples:,} examples.")
    if trial.driver:
        lines.append(f"Its files are in the folder of the search {_code(trial.driver)}.")
    if trial.outcome is Outcome.COMPLETE:
        lines.append(f"Take it with `autopeft export {quote(str(state.folder))} TARGET --trial {trial.number}`.")
    if trial.outcome in (Outcome.FAILED, Outcome.OUT_OF_MEMORY):
        lines.append(f"The whole error is in `{StudyFolder(state.folder).log(trial.number)}`.")
    return "\n\n".join(lines)


def _scores(state: StudyState, trial: TrialRecord) -> str:
    names = [name for name, value in trial.scores.items() if isfinite(value)]
    test = state.tests.get(trial.number)
    header = ["score", "validation", *(["test"] if test else [])]
    rows = []
    for name in names:
        row = [label_words(name), format_score(trial.scores, trial.standard_errors, name)]
        rows.append([*row, format_score(test.scores, test.standard_errors, name)] if test else row)
    return _table(header, rows) if rows else ""


def _costs(state: StudyState, trial: TrialRecord) -> str:
    measured = trial.measured
    found = {"peak_memory": MISSING if measured.peak_memory is None else format_bytes(measured.peak_memory)}
    rows = [
        [
            OBJECTIVES[name].label,
            format_cost(name, trial.estimate.cost(name)),
            found.get(name, MISSING),
            format_cost(name, state.limits[name]) if name in state.limits else MISSING,
        ]
        for name in COSTS
    ]
    seconds = format_seconds(measured.train_seconds + measured.evaluation_seconds) if measured.n_steps else MISSING
    rows.append(["time to train and evaluate", MISSING, seconds, MISSING])
    return _table(["cost", "predicted", "measured", "limit"], rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    # The page puts no space between columns: two that do not break end each cell.
    cells = [[cell.replace("|", "\\|") + "\u00a0\u00a0" for cell in line] for line in (header, *rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (cells[0], [":---"] * len(header), *cells[1:]))


def _code(text: str) -> str:
    """Return text of any kind as one line that Markdown leaves alone."""
    return "`" + " ".join(text.split()).replace("`", "'") + "`"
