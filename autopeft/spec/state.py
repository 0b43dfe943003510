"""All that is known of a study at one moment, as a plain value: what results, plots and reports are made from."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autopeft.spec.model import ModelSummary
from autopeft.spec.objective import Objective, find_objective
from autopeft.spec.study import StudySpec
from autopeft.spec.training import Training
from autopeft.spec.trial import Outcome, Sample, TrialRecord


@dataclass(frozen=True, kw_only=True)
class TestScore:
    """Scores of a finished design on the test split, which the search never sees."""

    __test__ = False  # not a test case, whatever pytest makes of the name

    scores: Mapping[str, float]
    standard_errors: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class StudyState:
    """A study as it stands.

    Attributes:
        folder: Where the study writes.
        training: With everything that `auto` left open resolved.
        metric: Name of the quality metric that designs are compared by.
        limits: The budget as amounts.
        n_full_examples: Examples of a full training.
        trials: Every trial in the record, by number; of a chain of continued trials, all links.
        n_refused: Proposals that were never trained, by the limit they broke, or `requirement`, `illegal`, `duplicate`.
        tests: The final check, by trial number.
        samples: What designs wrote in the final check, by trial number; empty where the task writes nothing.
        notes: What preparation had to say: how splits were made, how much was truncated.
        facts: Versions, hashes, and whatever else was chosen or measured once.
    """

    folder: Path
    spec: StudySpec
    model: ModelSummary
    training: Training
    metric: str
    limits: Mapping[str, int]
    n_full_examples: int
    trials: tuple[TrialRecord, ...]
    n_refused: Mapping[str, int] = field(default_factory=dict)
    tests: Mapping[int, TestScore] = field(default_factory=dict)
    samples: Mapping[int, tuple[Sample, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """Return what the study optimises, in the order asked for."""
        return tuple(find_objective(name) for name in self.spec.objectives)

    @property
    def quality(self) -> Objective:
        """Return the metric that designs are compared by."""
        return find_objective(self.metric)

    @property
    def cost(self) -> Objective:
        """Return the cost that fronts are drawn over: the first cost objective."""
        return next(objective for objective in self.objectives if objective.kind == "cost")

    @property
    def yardstick(self) -> TrialRecord | None:
        """Return the default design that the front is measured against, where it trained in full."""
        return self._baseline("yardstick")

    @property
    def base(self) -> TrialRecord | None:
        """Return the base model as it is, untrained, where the task can score it."""
        return self._baseline("base")

    @property
    def full(self) -> TrialRecord | None:
        """Return the whole model fine-tuned, at the best of the learning rates that were tried, where it was."""
        tried = [t for t in self.trials if t.baseline == "full" and t.outcome is Outcome.COMPLETE]
        return min(tried, key=lambda trial: self.quality.loss(trial.value(self.metric)), default=None)

    def _baseline(self, name: str) -> TrialRecord | None:
        return next((t for t in self.trials if t.baseline == name and t.outcome is Outcome.COMPLETE), None)

    @property
    def outcomes(self) -> Counter[Outcome]:
        """Count the trials by outcome, a chain of continued trials as its last link."""
        return Counter(trial.outcome for trial in self.chains)

    @property
    def chains(self) -> tuple[TrialRecord, ...]:
        """Return the trials with each chain of continued trials as its last link."""
        continued = {trial.continues for trial in self.trials if trial.continues is not None}
        return tuple(trial for trial in self.trials if trial.number not in continued)
