"""The record of a study: an Optuna study on a journal file, written by the driver alone.

`optuna.load_study` reads it without autopeft: parameters under legible names, objective values, constraints,
and everything else in user attributes as JSON.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import JournalStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from autopeft.searching.journal import JournalFile, repair_journal
from autopeft.searching.sampler import Sampler, quiet_optuna
from autopeft.spec.cost import Estimate, Measured
from autopeft.spec.design import Design
from autopeft.spec.objective import Objective
from autopeft.spec.trial import Outcome, RungScore, TrialRecord

STATES = {
    Outcome.COMPLETE: TrialState.COMPLETE,
    Outcome.STOPPED: TrialState.PRUNED,
    Outcome.INFEASIBLE: TrialState.PRUNED,
    Outcome.FAILED: TrialState.FAIL,
    Outcome.OUT_OF_MEMORY: TrialState.FAIL,
    Outcome.INTERRUPTED: TrialState.FAIL,
    Outcome.RUNNING: TrialState.RUNNING,
}
"""What Optuna is told for each outcome; the outcome itself is the user attribute `outcome`."""


class StudyStore:
    """Trials of one study in Optuna's storage."""

    def __init__(self, study: optuna.Study, journal: JournalFile, objectives: Sequence[Objective]) -> None:
        self._study = study
        self._journal = journal
        self._objectives = tuple(objectives)
        self._ids = {trial.number: trial._trial_id for trial in study.get_trials(deepcopy=False)}

    @classmethod
    def create(cls, journal: Path, *, name: str, objectives: Sequence[Objective]) -> "StudyStore":
        """Open a study for writing; make it where there is none, and repair its journal where that is torn."""
        journal.parent.mkdir(parents=True, exist_ok=True)
        repair_journal(journal)
        file = JournalFile(journal)
        with quiet_optuna():
            study = optuna.create_study(
                storage=JournalStorage(file),
                study_name=name,
                directions=[objective.direction for objective in objectives],
                load_if_exists=True,
            )
            if study.metric_names is None:
                study.set_metric_names([objective.name for objective in objectives])
        return cls(study, file, objectives)

    @classmethod
    def read(cls, journal: Path, *, name: str, objectives: Sequence[Objective]) -> "StudyStore":
        """Open a study without changing it, also while a search writes it."""
        file = JournalFile(journal)
        return cls(optuna.load_study(storage=JournalStorage(file), study_name=name), file, objectives)

    def together(self) -> AbstractContextManager[None]:
        """Return a context in which everything that is written reaches the disk at once, at its end."""
        return self._journal.together()

    def records(self) -> tuple[TrialRecord, ...]:
        """Return every trial, by number."""
        return tuple(_read(trial) for trial in self._study.get_trials(deepcopy=False))

    def add(
        self,
        record: TrialRecord,
        params: Mapping[str, Any] | None = None,
        distributions: Mapping[str, BaseDistribution] | None = None,
    ) -> TrialRecord:
        """Append a trial in one write and return it with its number; `record.number` is ignored."""
        self._study.add_trial(
            create_trial(
                state=STATES[record.outcome],
                values=self._values(record),
                params=dict(params or {}),
                distributions=dict(distributions or {}),
                user_attrs=_attributes(record),
                # The list form of the key is the one that Optuna Dashboard shows.
                system_attrs={"constraints": list(record.excess.values())} if record.excess else None,
            )
        )
        trial = self._study.get_trials(deepcopy=False)[-1]
        self._ids[trial.number] = trial._trial_id
        return _read(trial)

    def update(self, record: TrialRecord) -> None:
        """Write what has changed of a running trial; where its outcome is final, end it."""
        storage, trial_id = self._study._storage, self._ids[record.number]
        known = storage.get_trial(trial_id)
        with self.together():
            for name, value in _attributes(record).items():
                if known.user_attrs.get(name) != value:
                    storage.set_trial_user_attr(trial_id, name, value)
            if record.outcome is not Outcome.RUNNING:
                storage.set_trial_state_values(trial_id, STATES[record.outcome], self._values(record))

    def recover(self) -> tuple[TrialRecord, ...]:
        """End the trials that a killed search had all but ended, and return those that it left running."""
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            outcome = Outcome(trial.user_attrs["outcome"])
            if outcome is not Outcome.RUNNING:
                self.update(replace(_read(trial), outcome=outcome))
        return tuple(record for record in self.records() if record.outcome is Outcome.RUNNING)

    def fact(self, name: str) -> Any:
        """Return an attribute of the study, or None."""
        return self._study.user_attrs.get(name)

    def set_fact(self, name: str, value: Any) -> None:
        """Set an attribute of the study."""
        self._study.set_user_attr(name, value)

    def teach(self, sampler: Sampler) -> None:
        """Give a new sampler everything that the record holds."""
        for trial in self._study.get_trials(deepcopy=False):
            if trial.params and trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
                sampler.remember(
                    trial.params, trial.distributions, trial.state, values=trial.values, constraints=trial.constraints
                )

    def parameters(self, number: int) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
        """Return a trial's parameters and distributions, for a trial that continues it."""
        trial = self._study.get_trials(deepcopy=False)[number]
        return dict(trial.params), dict(trial.distributions)

    def _values(self, record: TrialRecord) -> list[float] | None:
        if record.outcome is not Outcome.COMPLETE:
            return None
        return [float(record.value(objective.name)) for objective in self._objectives]


def _attributes(record: TrialRecord) -> dict[str, Any]:
    """Return a record as the user attributes of its trial."""
    return {
        "summary": record.describe(),
        "design": record.design.to_dict(),
        "learning_rates": dict(record.learning_rates),
        "seed": record.seed,
        "estimate": record.estimate.to_dict(),
        "excess": dict(record.excess),
        "scores": dict(record.scores),
        "standard_errors": dict(record.standard_errors),
        "rungs": [{"rung": r.rung, "examples": r.examples, "scores": dict(r.scores)} for r in record.rungs],
        "measured": record.measured.to_dict(),
        "examples": record.examples,
        "continues": record.continues,
        "n_retries": record.n_retries,
        "reason": record.reason,
        "baseline": record.baseline,
        "outcome": record.outcome.value,  # the last: what stands before it is whole wherever it is read
    }


def _read(trial: FrozenTrial) -> TrialRecord:
    attributes = trial.user_attrs
    return TrialRecord(
        number=trial.number,
        design=Design.from_dict(attributes["design"]),
        learning_rates=attributes["learning_rates"],
        seed=attributes["seed"],
        outcome=Outcome(attributes["outcome"]) if trial.state.is_finished() else Outcome.RUNNING,
        estimate=Estimate(**attributes["estimate"]),
        excess=attributes["excess"],
        scores=attributes["scores"],
        standard_errors=attributes["standard_errors"],
        rungs=tuple(RungScore(**rung) for rung in attributes["rungs"]),
        measured=Measured(**attributes["measured"]),
        examples=attributes["examples"],
        continues=attributes["continues"],
        n_retries=attributes.get("n_retries", 0),  # absent in records of before 0.2
        reason=attributes["reason"],
        baseline=attributes["baseline"],
        started_at=trial.datetime_start.timestamp() if trial.datetime_start else None,
        ended_at=trial.datetime_complete.timestamp() if trial.datetime_complete else None,
    )
