"""Every trial of a study as one table."""

from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any

import pandas as pd

from autopeft.results.wording import reason_words, serving_words
from autopeft.spec.objective import COSTS
from autopeft.spec.state import StudyState, TestScore
from autopeft.spec.trial import Outcome, TrialRecord
from autopeft.study.front import pareto_front

_ORDER = (
    Outcome.COMPLETE,
    Outcome.RUNNING,
    Outcome.INTERRUPTED,
    Outcome.STOPPED,
    Outcome.OUT_OF_MEMORY,
    Outcome.FAILED,
    Outcome.INFEASIBLE,
)
"""Finished designs first; those that were never trained last."""


def make_leaderboard(state: StudyState) -> pd.DataFrame:
    """Return every trial, complete ones first, best first by the study's metric.

    A chain of continued trials is one row, that of its last link, whose scores and measured cost cover the
    whole chain. Costs are in parameters, bytes and FLOPs.

    Columns: `number`, `design` in words, `outcome`, `front`; each metric and its standard error (`accuracy`,
    `accuracy_se`), the same on the test split (`test_accuracy`, `test_accuracy_se`) where it was checked; every
    predicted cost; `measured_peak_memory` and `peak_memory_error` (measured / predicted - 1); `train_seconds`;
    `examples_share` of a full training; `serving`; `excess` (the largest over all limits, relative; feasible iff
    <= 0); `reason`; `baseline`.
    """
    front = {record.number for record in pareto_front(state.trials, state.objectives)}
    metrics = metric_names(state)
    rows = [_row(state, trial, metrics, trial.number in front) for trial in ranked(state)]
    return pd.DataFrame(rows, columns=_columns(metrics))


def ranked(state: StudyState) -> list[TrialRecord]:
    """Return every trial, chains as their last link: by outcome, then best first, then earliest."""

    def key(trial: TrialRecord) -> tuple[int, float, int]:
        score = trial.scores.get(state.metric, float("nan"))
        loss = state.quality.loss(score) if isfinite(score) else float("inf")
        return _ORDER.index(trial.outcome), loss, trial.number

    return sorted(state.chains, key=key)


def metric_names(state: StudyState) -> tuple[str, ...]:
    """Return every quality metric that some trial has, the study's own first."""
    found = {name for trial in state.trials for name in trial.scores}
    return (state.metric, *sorted(found - {state.metric}))


def _columns(metrics: Iterable[str]) -> list[str]:
    scores = [f"{name}{suffix}" for name in metrics for suffix in ("", "_se")]
    return [
        *("number", "design", "outcome", "front"),
        *scores,
        *(f"test_{column}" for column in scores),
        *COSTS,
        *(
            "measured_peak_memory",
            "peak_memory_error",
            "train_seconds",
            "examples_share",
            "serving",
            "excess",
            "reason",
            "baseline",
        ),
    ]


def _row(state: StudyState, trial: TrialRecord, metrics: Iterable[str], on_front: bool) -> dict[str, Any]:
    test = state.tests.get(trial.number, TestScore(scores={}, standard_errors={}))
    peak = trial.measured.peak_memory
    return {
        "number": trial.number,
        "design": trial.describe(),
        "outcome": trial.outcome.value,
        "front": on_front,
        **_scores("", metrics, trial.scores, trial.standard_errors),
        **_scores("test_", metrics, test.scores, test.standard_errors),
        **{name: trial.estimate.cost(name) for name in COSTS},
        "measured_peak_memory": float("nan") if peak is None else peak,
        "peak_memory_error": float("nan") if peak is None else peak / trial.estimate.peak_memory - 1.0,
        "train_seconds": trial.measured.train_seconds,
        "examples_share": trial.examples / state.n_full_examples,
        "serving": serving_words(trial),
        "excess": max(trial.excess.values(), default=float("nan")),
        "reason": reason_words(trial, state.limits),
        "baseline": trial.baseline,
    }


def _scores(
    prefix: str, metrics: Iterable[str], scores: Mapping[str, float], errors: Mapping[str, float]
) -> dict[str, float]:
    row = {}
    for name in metrics:
        row[f"{prefix}{name}"] = scores.get(name, float("nan"))
        row[f"{prefix}{name}_se"] = errors.get(name, float("nan"))
    return row
