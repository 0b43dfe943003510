"""`front.json`, the front as data for programs without autopeft: written when a search ends, checked in a replay."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import isclose, isfinite
from typing import Any

from autopeft.errors import ResultError
from autopeft.spec.objective import Objective
from autopeft.spec.state import StudyState
from autopeft.spec.trial import Outcome, TrialRecord
from autopeft.study.front import Front, pareto_front

FILE = "front.json"
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
        "designs": [_design_values(state, record) for record in pareto_front(state.trials, state.objectives)],
        "yardstick": None if yardstick is None else _design_values(state, yardstick),
        "full_fine_tuning": None if state.full is None else _design_values(state, state.full),
    }


@dataclass(frozen=True, kw_only=True)
class WrittenFront:
    """What the file says.

    Attributes:
        values: Of each objective, by the numbers of the trials that it has.
        is_front: Whether these trials are the front that the record gives; None where they may have been at an earlier
            moment, as a search leaves them that was killed before it wrote the file again.
    """

    values: Mapping[int, Mapping[str, float]]
    is_front: bool | None

    def check(self, trial: TrialRecord, state: StudyState, *, on_front: bool) -> tuple[bool | None, str]:
        """Return whether the file says the same of a trial as the record, and what it says where it does not."""
        values = self.values.get(trial.number)
        if (values is not None) != on_front:
            when = ", which may be of an earlier moment," if self.is_front is None else ""
            return self.is_front, f"; but {FILE}{when} {'does not have it' if on_front else 'has it'}"
        if values is not None:
            for objective in state.objectives:
                value, known = values[objective.name], trial.value(objective.name)
                if not isclose(value, known, rel_tol=1e-9, abs_tol=1e-12):
                    return False, f"; but {FILE} has {objective.label} {value:.6g}"
        if trial is state.trials[-1] and (unknown := self.values.keys() - {other.number for other in state.trials}):
            return False, f"; but {FILE} also has trial {min(unknown)}, which the record has not"
        return True, ""


def read_front(state: StudyState, *, is_shared: bool) -> WrittenFront | None:
    """Return what the file of a study says; None where there is none.

    Args:
        state: The study.
        is_shared: Whether several drivers wrote it.

    Raises:
        ResultError: It is no front.
    """
    path = state.folder / FILE
    if not path.is_file():
        return None
    try:
        designs = json.loads(path.read_text(encoding="utf-8"))["designs"]
        values = {int(one["trial"]): {o.name: _value(one, o) for o in state.objectives} for one in designs}
    except (ValueError, KeyError, TypeError):
        raise ResultError(
            f"{path} must be a front that a search wrote, but it cannot be read; remove it, or run the search again"
        ) from None
    return WrittenFront(values=values, is_front=_is_front(set(values), state, is_shared=is_shared))


def _value(design: Mapping[str, Any], objective: Objective) -> float:
    if objective.kind == "cost":
        return float(design["predicted"][objective.name])
    return float(design["validation"][objective.name]["value"])


def _is_front(numbers: set[int], state: StudyState, *, is_shared: bool) -> bool | None:
    """Return whether trials are the front; None where they were once, or the record does not say."""
    complete = [trial for trial in state.trials if trial.outcome is Outcome.COMPLETE]
    front, was_once = Front(state.objectives), not numbers
    for trial in sorted(complete, key=lambda trial: -1 if trial.last_event is None else trial.last_event):
        front.put(trial)
        was_once |= front.numbers() == numbers
    if front.numbers() == numbers:
        return True
    # Drivers that share a study count events each for itself, and older records hold none.
    has_order = not is_shared and all(trial.last_event is not None for trial in complete)
    return None if was_once or not has_order else False


def _design_values(state: StudyState, record: TrialRecord) -> dict[str, Any]:
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
