"""`front.json`: the front as data, for programs that do not import autopeft."""

from math import isfinite
from typing import Any

from autopeft.searching.pareto import pareto_front
from autopeft.spec.state import StudyState
from autopeft.spec.trial import TrialRecord

SCHEMA_VERSION = 1


def front_values(state: StudyState) -> dict[str, Any]:
    """Return the front as JSON-ready values; every path in it is relative to the study's folder."""
    yardstick = state.yardstick
    return {
        "schema_version": SCHEMA_VERSION,
        "study": state.spec.study_name,
        "model": {"name": state.model.name, "fingerprint": state.model.fingerprint},
        "metric": state.metric,
        "objectives": [{"name": o.name, "direction": o.direction} for o in state.objectives],
        "limits": dict(state.limits),
        "n_full_examples": state.n_full_examples,
        "designs": [_values(state, record) for record in pareto_front(state.trials, state.objectives)],
        "yardstick": None if yardstick is None else _values(state, yardstick),
        "full_fine_tuning": None if state.full is None else _values(state, state.full),
    }


def _values(state: StudyState, record: TrialRecord) -> dict[str, Any]:
    test = state.tests.get(record.number)
    return {
        "trial": record.number,
        "adapter": f"adapters/{record.number}",
        "summary": record.describe(),
        "design": record.design.to_dict(),
        "learning_rates": dict(record.learning_rates),
        "seed": record.seed,
        "baseline": record.baseline,
        "validation": _scores(record.scores, record.standard_errors),
        "test": None if test is None else _scores(test.scores, test.standard_errors),
        "predicted": record.estimate.to_dict(),
        "measured": record.measured.to_dict(),
    }


def _scores(scores: Any, standard_errors: Any) -> dict[str, dict[str, float | None]]:
    """Return scores with their standard errors by metric; JSON has no NaN, so what is not finite is null."""
    return {
        name: {"value": _finite(value), "standard_error": _finite(standard_errors.get(name, float("nan")))}
        for name, value in scores.items()
    }


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None
