"""The record of a study: an Optuna study on a journal file, written by the driver alone.

`optuna.load_study` reads it without autopeft: parameters under legible names, objective values, constraints,
and everything else in user attributes as JSON.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
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
from autopeft.spec.trial import Outcome, RungScore, TrialRecord, Verdict

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
    """Trials of one study in Optuna's storage: a journal of one driver, or a database that several share.

    Whoever writes a shared study looks at it (`records`, `changes`) and decides inside a `turn`.
    """

    def __init__(
        self, study: optuna.Study, place: JournalFile | Database, objectives: Sequence[Objective], *, writes: bool
    ) -> None:
        self._study = study
        self._place = place
        self._objectives = tuple(objectives)
        self._known: dict[int, FrozenTrial] = {}
        self._ids: dict[int, int] = {}
        self._own: dict[int, dict[str, Any]] = {}
        self._taught: set[int] = set()
        self._facts: dict[str, Any] | None = None
        self._parts: dict[str, Any] = {}
        self._since: dict[str, float] = {}
        self._next_check = 0.0
        if isinstance(place, Database) and writes:
            place.join(study)
        self._look()

    @classmethod
    def create(
        cls, journal: Path, *, name: str, objectives: Sequence[Objective], storage: str | None = None
    ) -> "StudyStore":
        """Open a study for writing; make it where there is none, and repair its journal where that is torn.

        Args:
            journal: Where its journal is, or will be.
            name: Of the study.
            objectives: In the order of its values.
            storage: Address of a database that keeps the study instead of a journal.

        Raises:
            MissingDependencyError, StorageError: The database cannot be used.
        """
        place: JournalFile | Database
        if storage is not None:
            place = Database(storage, name=name, writes=True)
        else:
            journal.parent.mkdir(parents=True, exist_ok=True)
            repair_journal(journal)
            place = JournalFile(journal)
        with quiet_optuna(), place.turn():
            study = optuna.create_study(
                storage=_storage(place),
                study_name=name,
                directions=[objective.direction for objective in objectives],
                load_if_exists=True,
            )
            if study.metric_names is None:
                study.set_metric_names([objective.name for objective in objectives])
        return cls(study, place, objectives, writes=True)

    @classmethod
    def read(
        cls, journal: Path, *, name: str, objectives: Sequence[Objective], storage: str | None = None
    ) -> "StudyStore":
        """Open a study without changing it, also while a search writes it; arguments and errors as of `create`.

        Raises:
            KeyError: There is no such study.
        """
        place = JournalFile(journal) if storage is None else Database(storage, name=name, writes=False)
        return cls(optuna.load_study(storage=_storage(place), study_name=name), place, objectives, writes=False)

    @property
    def driver(self) -> str:
        """Return the name of this driver of a shared study; empty where nobody else may write."""
        return self._place.driver

    def close(self) -> None:
        """Leave a shared study: what this driver has left running, others may end. Can be called twice."""
        self._place.leave()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Give a context in which what is written reaches a journal's disk at once, at its end.

        A database gets each trial at once, and each fact of the study once, as it is at the end.
        """
        if self._facts is not None or not isinstance(self._place, Database):
            with self._place.together():
                yield
            return
        self._facts = {}
        try:
            yield
        finally:
            held, self._facts = self._facts, None
            for name, value in held.items():
                self.set_fact(name, value)

    def turn(self) -> AbstractContextManager[None]:
        """Return a context in which no other driver of the study decides anything."""
        return self._place.turn()

    def records(self) -> tuple[TrialRecord, ...]:
        """Return every trial, by number."""
        trials = self._look()
        self._known = {trial.number: trial for trial in trials}
        return tuple(_read(trial) for trial in trials)

    def changes(self) -> tuple[TrialRecord, ...]:
        """Return what other drivers have begun or changed since the last call, or since `records`, by number."""
        if not self.driver:
            return ()
        changed = []
        for trial in self._look():
            before = self._known.get(trial.number)
            self._known[trial.number] = trial
            if before is trial or trial.number in self._own:
                continue
            if before is None or (before.state, before.user_attrs) != (trial.state, trial.user_attrs):
                changed.append(_read(trial))
        return tuple(changed)

    def add(
        self,
        record: TrialRecord,
        params: Mapping[str, Any] | None = None,
        distributions: Mapping[str, BaseDistribution] | None = None,
    ) -> TrialRecord:
        """Append a trial in one write and return it with its number; `record.number` is ignored."""
        record = replace(record, driver=self.driver)
        template = create_trial(
            state=STATES[record.outcome],
            values=self._values(record),
            params=dict(params or {}),
            distributions=dict(distributions or {}),
            user_attrs=_attributes(record),
            # The list form of the key is the one that Optuna Dashboard shows.
            system_attrs={"constraints": list(record.excess.values())} if record.excess else None,
        )
        tries = 0

        def create() -> FrozenTrial:
            nonlocal tries
            tries += 1
            if tries > 1 and (unheard := self._unheard()):  # written, and the answer was lost
                return unheard[0]
            storage = self._study._storage
            return storage.get_trial(storage.create_new_trial(self._study._study_id, template_trial=template))

        trial = self._place.ask(create)
        self._ids[trial.number] = trial._trial_id
        self._own[trial.number] = dict(trial.user_attrs)
        return _read(trial)

    def update(self, record: TrialRecord) -> bool:
        """Write what has changed of a running trial; where its outcome is final, end it.

        Returns:
            Whether it is written; another driver that took this one for dead may have ended the trial before.
        """
        storage, trial_id = self._study._storage, self._ids[record.number]
        known = self._own.get(record.number)
        if known is None:
            known = self._place.ask(lambda: storage.get_trial(trial_id)).user_attrs
        attributes = _attributes(record)
        try:
            with self.together():
                for name, value in attributes.items():
                    if known.get(name) != value:
                        self._place.ask(partial(storage.set_trial_user_attr, trial_id, name, value))
                if record.outcome is not Outcome.RUNNING:
                    end = partial(storage.set_trial_state_values, trial_id, STATES[record.outcome])
                    self._place.ask(partial(end, self._values(record)))
        except UpdateFinishedTrialError:  # it may have been this driver: an answer can be lost
            stored = self._place.ask(lambda: storage.get_trial(trial_id)).user_attrs
            return bool(stored["outcome"] == record.outcome.value and stored["reason"] == record.reason)
        if record.number in self._own:
            self._own[record.number] = attributes
        return True

    def recover(self) -> tuple[TrialRecord, ...]:
        """End the trials that a driver that is gone had all but ended, and return those that it left running."""
        running = [t for t in self._look() if t.state is TrialState.RUNNING and t.number not in self._own]
        left = [trial for trial in running if self._signs(running)[_driver(trial)].is_gone]
        for trial in left:
            outcome = Outcome(trial.user_attrs["outcome"])
            if outcome is not Outcome.RUNNING:
                self.update(replace(_read(trial), outcome=outcome))
        numbers = {trial.number for trial in left}
        return tuple(r for r in map(_read, self._look()) if r.outcome is Outcome.RUNNING and r.number in numbers)

    def fact(self, name: str) -> Any:
        """Return an attribute of the study, or None."""
        if self._facts is not None and name in self._facts:
            return self._facts[name]
        return self._place.ask(lambda: self._study.user_attrs).get(name)

    def set_fact(self, name: str, value: Any) -> None:
        """Set an attribute of the study."""
        if self._facts is not None:
            self._facts[name] = value
        else:
            self._place.ask(lambda: self._study.set_user_attr(name, value))

    def part(self, name: str) -> Any:
        """Return this driver's part of a fact that every driver adds to, or None; the fact where it is alone."""
        return self._parts.get(name) if self.driver else self.fact(name)

    def parts(self, name: str) -> list[Any]:
        """Return all parts of a fact that every driver adds to."""
        attributes = self._place.ask(lambda: self._study.user_attrs)
        return [value for key, value in attributes.items() if key == name or key.startswith(f"{name}@")]

    def set_part(self, name: str, value: Any) -> None:
        """Set this driver's part of a fact that every driver adds to."""
        self._parts[name] = value
        self.set_fact(f"{name}@{self.driver}" if self.driver else name, value)

    def teach(self, sampler: Sampler) -> None:
        """Give a sampler what the record holds that it has not been given, and did not propose itself here."""
        for trial in self._known.values() or self._look():
            if trial.number in self._taught or trial.number in self._own or not trial.state.is_finished():
                continue
            self._taught.add(trial.number)
            if trial.params and trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
                sampler.remember(
                    trial.params, trial.distributions, trial.state, values=trial.values, constraints=trial.constraints
                )

    def parameters(self, number: int) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
        """Return a trial's parameters and distributions, for a trial that continues it."""
        trial = self._place.ask(lambda: self._study._storage.get_trial(self._ids[number]))
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
        "rungs": [asdict(rung) for rung in record.rungs],
        "measured": record.measured.to_dict(),
        "examples": record.examples,
        "continues": record.continues,
        "n_retries": record.n_retries,
        "reason": record.reason,
        "baseline": record.baseline,
        "first_event": record.first_event,
        "last_event": record.last_event,
        "outcome": record.outcome.value,  # the last: what stands before it is whole wherever it is read
    }


def _read_rung(values: Mapping[str, Any]) -> RungScore:
    verdict = values.get("verdict")
    return RungScore(**{**values, "verdict": None if verdict is None else Verdict(**verdict)})


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
        rungs=tuple(_read_rung(rung) for rung in attributes["rungs"]),
        measured=Measured(**attributes["measured"]),
        examples=attributes["examples"],
        continues=attributes["continues"],
        n_retries=attributes.get("n_retries", 0),  # absent in records of before 0.2
        reason=attributes["reason"],
        baseline=attributes["baseline"],
        first_event=attributes.get("first_event"),
        last_event=attributes.get("last_event"),
        started_at=trial.datetime_start.timestamp() if trial.datetime_start else None,
        ended_at=trial.datetime_complete.timestamp() if trial.datetime_complete else None,
    )
