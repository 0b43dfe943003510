"""How sure a difference between two designs is: both answered the same examples, so differences are paired."""

import json
from dataclasses import dataclass
from functools import cached_property
from math import hypot, isfinite

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from autopeft.errors import ResultError
from autopeft.metrics import find_metric, paired_difference
from autopeft.spec.objective import Objective, find_objective
from autopeft.spec.state import StudyState
from autopeft.spec.trial import TrialRecord
from autopeft.study.folder import StudyFolder

Z_95 = float(norm.ppf(0.975))
"""Standard errors on either side of a value that make a normal 95 % interval."""


def interval(value: float, standard_error: float, objective: Objective | None = None) -> tuple[float, float]:
    """Return a normal 95 % interval; where an objective is given, no better than its ideal value.

    Omits: the skew of a share near 0 or 1. At 600 examples and a share of 0.95 an exact (Wilson) interval
    has its ends 0.003 lower.
    """
    low, high = value - Z_95 * standard_error, value + Z_95 * standard_error
    if objective is None or objective.best is None:
        return low, high
    return (low, min(high, objective.best)) if objective.direction == "maximize" else (max(low, objective.best), high)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """By how much one design is better than another on one split.

    Attributes:
        value: Positive where the first is better, whatever the direction of the metric.
        paired: False where predictions were missing, and the standard error is that of two independent
            splits: larger than it need be.
    """

    value: float
    standard_error: float
    split: str
    paired: bool = True

    @property
    def interval(self) -> tuple[float, float]:
        """Return the normal 95 % interval."""
        return interval(self.value, self.standard_error)

    @property
    def is_clear(self) -> bool:
        """Return whether the 95 % interval leaves out zero."""
        return abs(self.value) > Z_95 * self.standard_error


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One design against a reference, on both splits.

    Attributes:
        validation: Optimistic where the design was chosen for its validation score.
        test: None where one of them was not checked on the test split.
    """

    trial: TrialRecord
    reference: TrialRecord
    validation: Difference
    test: Difference | None

    @property
    def soundest(self) -> Difference:
        """Return the difference on the test split, which nothing was chosen by; validation where there is none."""
        return self.test if self.test is not None else self.validation


class Comparer:
    """Compares the finished trials of a study from their stored predictions, each read once."""

    def __init__(self, state: StudyState) -> None:
        self.state = state
        self._read: dict[tuple[str, int | str], NDArray[np.float64] | None] = {}

    @cached_property
    def _folder(self) -> StudyFolder:
        return StudyFolder(self.state.folder)

    def compare(self, trial: TrialRecord, reference: TrialRecord, metric: str | None = None) -> Comparison:
        """Compare two finished trials on the validation split, and on the test split where both were checked.

        Raises:
            ResultError: One of them has no score of that metric, or their predictions do not fit together.
        """
        name = metric or self.state.metric
        validation = self.difference(trial, reference, name, "validation")
        if validation is None:
            raise ResultError(
                f"two designs are compared by a metric that both have, but trials {trial.number} and "
                f"{reference.number} have no {name} in common; compare trials that trained in full"
            )
        return Comparison(
            trial=trial,
            reference=reference,
            validation=validation,
            test=self.difference(trial, reference, name, "test"),
        )

    def difference(self, a: TrialRecord, b: TrialRecord, metric: str, split: str) -> Difference | None:
        """Return by how much `a` is better than `b`, None where either has no score on the split."""
        (score_a, error_a), (score_b, error_b) = self._score(a, metric, split), self._score(b, metric, split)
        sign = -find_objective(metric).loss(1.0)
        if not (isfinite(score_a) and isfinite(score_b)):
            return None
        labels, of_a, of_b = (self._predictions(split, which) for which in ("labels", a.number, b.number))
        if labels is not None and of_a is not None and of_b is not None:
            how = find_metric(self.state.spec.task, metric)
            if how is not None and how.paired is not None and of_a.ndim == how.n_dims:
                value, standard_error = paired_difference(how, labels, of_a, of_b)
                return Difference(value=sign * value, standard_error=standard_error, split=split)
        error = 0.0 if a.number == b.number else hypot(error_a, error_b)
        return Difference(value=sign * (score_a - score_b), standard_error=error, split=split, paired=False)

    def _score(self, record: TrialRecord, metric: str, split: str) -> tuple[float, float]:
        source = record if split == "validation" else self.state.tests.get(record.number)
        if source is None:
            return float("nan"), float("nan")
        return source.scores.get(metric, float("nan")), source.standard_errors.get(metric, float("nan"))

    def _predictions(self, split: str, which: int | str) -> NDArray[np.float64] | None:
        """Return a trial's predictions (classes, or rows), or the split's `labels`; None where there is no file."""
        if (split, which) not in self._read:
            path = self._folder.predictions(split, which)
            try:
                values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
                self._read[split, which] = None if values is None else np.asarray(values, dtype=np.float64)
            except (ValueError, TypeError):
                raise ResultError(
                    f"{path} must be a JSON list of numbers, or of rows of as many, but it cannot be read"
                ) from None
        return self._read[split, which]
