"""How far a study is, for people and for programs."""

from dataclasses import asdict
from math import isfinite
from typing import Any

from autopeft.results.diagnostics import memory_errors
from autopeft.spec.state import StudyState
from autopeft.spec.trial import Outcome
from autopeft.study.folder import StudyFolder
from autopeft.study.front import eligible, pareto_front


def status_values(state: StudyState) -> dict[str, Any]:
    """Return how far a study is, as JSON-ready values.

    Keys: `study`, `task`, `metric`; `running` (whether a search holds the folder now); `n_trials` (designs that may
    start), `n_started`; `outcomes` (trials by outcome, a chain of continued trials as one; every outcome is there);
    `n_refused` (proposals by reason); `n_front`, `best` (of the metric; null before a design trained in full);
    `n_tested` (designs scored on the test split); `memory_error` (how far measured peaks were off the
    prediction: `n` trials, `median`, `worst`, `bound` on measured / predicted; null before one was measured).
    """
    counts = state.outcomes
    scores = [
        t.scores[state.metric] for t in eligible(state.trials) if isfinite(t.scores.get(state.metric, float("nan")))
    ]
    return {
        "study": state.spec.study_name,
        "task": state.spec.task,
        "metric": state.metric,
        "running": StudyFolder(state.folder).is_held(),
        "n_trials": state.spec.n_trials,
        "n_started": sum(trial.has_started for trial in state.chains),
        "outcomes": {outcome.value: counts[outcome] for outcome in Outcome},
        "n_refused": dict(state.n_refused),
        "n_front": len(pareto_front(state.trials, state.objectives)),
        "best": min(scores, key=state.quality.loss, default=None),
        "n_tested": len(state.tests),
        "memory_error": None if (errors := memory_errors(state)) is None else asdict(errors),
    }


def status_words(state: StudyState) -> str:
    """Say whether a search is running now, how far it is, and how good its predictions of memory are."""
    errors = memory_errors(state)
    return _how_far(state) + ("" if errors is None else f"\n{errors.describe()}")


def _how_far(state: StudyState) -> str:
    values = status_values(state)
    started = f"{values['n_started']} of {values['n_trials']} designs have started training"
    training = ", ".join(str(trial.number) for trial in state.chains if trial.outcome is Outcome.RUNNING)
    if state.spec.storage is not None and training and not values["running"]:
        return f"No search is running here: {started}; trial {training} runs elsewhere, or was cut off there."
    if values["running"]:
        return f"A search is running: {started}{f', trial {training} now' if training else ''}."
    if training:
        return f"No search is running: {started}; it was cut off in trial {training}, and the same call resumes it."
    unfinished = values["n_started"] < values["n_trials"] or values["outcomes"]["interrupted"]
    return f"No search is running: {started}{'; the same call goes on' if unfinished else ''}."
