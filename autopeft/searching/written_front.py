"""`front.json`, which a search writes when it ends, held against the record that it was made from."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import isclose
from typing import Any

from autopeft.errors import ResultError
from autopeft.searching.pareto import Front
from autopeft.spec.objective import Objective
from autopeft.spec.state import StudyState
from autopeft.spec.trial import Outcome, TrialRecord

FILE = "front.json"


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
