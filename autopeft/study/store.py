"""The record of a study: an Optuna study, on a journal file of one driver or in a database that several share.

`optuna.load_study` reads it without autopeft: parameters under legible names, objective values, constraints,
and everything else in user attributes as JSON.
"""

import time
import zlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from autopeft.spec.objective import Objective
from autopeft.spec.trial import Outcome, TrialRecord
from autopeft.study.attributes import STATES, attributes_of, driver_of, read_record
from autopeft.study.database import Database, Sign
from autopeft.study.journal import JournalFile, repair_journal
from autopeft.study.lease import BEAT_SECONDS
from autopeft.study.optuna_log import quiet_optuna

_LONGEST_NOTE = 2045
"""Characters of a note that Optuna Dashboard keeps in one attribute."""


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
        self._ids: dict[int, int] = {}
        self._mine: set[int] = set()
        self._written: dict[int, dict[str, Any]] = {}
        self._known: dict[int, FrozenTrial] = {}
        self._learned: set[int] = set()
        self._held: dict[str, Any] | None = None
        self._parts: dict[str, Any] = {}
        self._first_seen: dict[str, float] = {}
        self._killed: set[str] = set()
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

    @property
    def database(self) -> Database | None:
        """Return the database that keeps the study; None for a journal."""
        return self._place if isinstance(self._place, Database) else None

    @property
    def ids(self) -> Mapping[int, int]:
        """Return what Optuna calls each trial by, by number, as of the last look."""
        return self._ids

    @property
    def offset(self) -> int:
        """Return a number that each driver of a shared study has for itself; 0 where there is one driver alone."""
        return zlib.crc32(self.driver.encode()) >> 2 if self.driver else 0

    def close(self) -> None:
        """Leave a shared study: what this driver has left running, others may end. Can be called twice."""
        self._place.leave()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Give a context in which what is written reaches a journal's disk at once, at its end.

        A database gets each trial at once, and each fact of the study once, as it is at the end.
        """
        if isinstance(self._place, JournalFile):
            with self._place.together():
                yield
        elif self._held is not None:
            yield
        else:
            self._held = {}
            try:
                yield
            finally:
                held, self._held = self._held, None
                for name, value in held.items():
                    self.set_fact(name, value)

    def turn(self) -> AbstractContextManager[None]:
        """Return a context in which no other driver of the study decides anything."""
        return self._place.turn()

    def records(self) -> tuple[TrialRecord, ...]:
        """Return every trial, by number."""
        trials = self._look()
        self._known = {trial.number: trial for trial in trials}
        return tuple(read_record(trial) for trial in trials)

    def stamp(self) -> Hashable:
        """Return a value that is another one when a trial was added, has changed or has its score on the test split."""
        trials = self._look()
        running = [t for t in trials if not t.state.is_finished()]
        states = tuple((t.number, t.user_attrs["examples"], t.user_attrs["outcome"]) for t in running)
        return len(trials), states, tuple(sorted(self.facts("")))

    def changes(self) -> tuple[TrialRecord, ...]:
        """Return what other drivers have begun or changed since the last call, or since `records`, by number."""
        if not self.driver:
            return ()
        changed = []
        for trial in self._look():
            if trial.number in self._mine:  # unknown until another driver has ended it, and this one has noticed
                continue
            before = self._known.get(trial.number)
            self._known[trial.number] = trial
            if before is trial:
                continue
            if before is None or (before.state, before.user_attrs) != (trial.state, trial.user_attrs):
                changed.append(read_record(trial))
        return tuple(changed)

    def add(
        self,
        record: TrialRecord,
        params: Mapping[str, Any] | None = None,
        distributions: Mapping[str, BaseDistribution] | None = None,
    ) -> TrialRecord:
        """Append a trial in one write and return it with its number; `record.number` is ignored.

        Raises:
            DecisionLostError: It would begin a trial, or be a baseline, and the turn of that decision was lost.
        """
        record = replace(record, driver=self.driver)
        template = create_trial(
            state=STATES[record.outcome],
            values=self._values(record),
            params=dict(params or {}),
            distributions=dict(distributions or {}),
            user_attrs=attributes_of(record),
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
            with self._place.in_one_piece(is_decision=record.outcome is Outcome.RUNNING or bool(record.baseline)):
                trial_id = storage.create_new_trial(self._study._study_id, template_trial=template)
            return storage.get_trial(trial_id)

        trial = self._place.ask(create)
        self._ids[trial.number] = trial._trial_id
        self._mine.add(trial.number)
        self._written[trial.number] = dict(trial.user_attrs)
        self._place.ask(partial(self._note, record, trial._trial_id))
        return read_record(trial)

    def update(self, record: TrialRecord) -> bool:
        """Write what has changed of a running trial; where its outcome is final, end it.

        Returns:
            Whether it is written; another driver that took this one for dead may have ended the trial before.
        """
        storage, trial_id = self._study._storage, self._ids[record.number]
        known = self._written.pop(record.number, {})
        attributes = attributes_of(record)

        def write() -> None:
            with self._place.in_one_piece(trial_id):
                for name, value in attributes.items():
                    if name not in known or known[name] != value:
                        storage.set_trial_user_attr(trial_id, name, value)
                if record.outcome is not Outcome.RUNNING:
                    self._note(record, trial_id)
                    storage.set_trial_state_values(trial_id, STATES[record.outcome], self._values(record))

        try:
            self._place.ask(write)
        except UpdateFinishedTrialError:  # it may have been this driver: an answer can be lost
            stored = self._place.ask(lambda: storage.get_trial(trial_id)).user_attrs
            is_ours = bool(stored["outcome"] == record.outcome.value and stored["reason"] == record.reason)
            if not is_ours:
                self._mine.discard(record.number)
            return is_ours
        if record.outcome is Outcome.RUNNING:
            self._written[record.number] = attributes
        return True

    def _note(self, record: TrialRecord, trial_id: int) -> None:
        """Write why a trial ended as it did where Optuna Dashboard shows it, also where it is started without us."""
        if record.outcome is Outcome.RUNNING or not record.reason:
            return
        study_id, reason = self._study._study_id, " ".join(record.reason.split()).replace("`", "'")
        text = f"`{record.describe()}`\n\n**{record.outcome.value.replace('_', ' ')}**: `{reason}`"
        for name, value in (("note_ver", 1), ("note_str:0", text[:_LONGEST_NOTE])):
            key = f"dashboard:{trial_id}:{name}"
            self._study._storage.set_study_system_attr(study_id, key, value)

    def recover(self) -> tuple[TrialRecord, ...]:
        """End the trials that a driver that is gone had all but ended, and return those that it left running."""
        running = self._left()
        signs = self._signs(running)
        self._killed |= {driver for driver, sign in signs.items() if sign.was_killed}
        left = []
        for trial in running:
            outcome = Outcome(trial.user_attrs["outcome"])
            if self.driver and driver_of(trial) == self.driver:  # Optuna asked twice, and the first answer was lost
                why = "the database lost an answer, and the trial was written again under another number"
                self.update(replace(read_record(trial), outcome=Outcome.FAILED, reason=why))
            elif signs[driver_of(trial)].is_gone and outcome is not Outcome.RUNNING:
                self.update(replace(read_record(trial), outcome=outcome))
            elif signs[driver_of(trial)].is_gone:
                left.append(read_record(trial))
        return tuple(left)

    def was_killed(self, driver: str) -> bool:
        """Return whether a driver of a shared study, of which `recover` has returned a trial, died without a word."""
        return driver in self._killed

    def abandoned(self) -> tuple[TrialRecord, ...]:
        """Return what `recover` does, at most once in `BEAT_SECONDS`; nothing where no other driver may write."""
        if not self.driver or time.monotonic() < self._next_check:
            return ()
        self._next_check = time.monotonic() + BEAT_SECONDS
        return self.recover()

    def may_inherit(self) -> bool:
        """Return whether a trial runs whose driver has shown no sign of life since this one began."""
        if not self.driver:
            return False
        running = self._left()
        signs = self._signs(running)
        return any(sign.is_gone or sign.seen_at == self._first_seen[driver] for driver, sign in signs.items())

    def _signs(self, trials: Sequence[FrozenTrial]) -> dict[str, Sign]:
        """Return what there is to see of the drivers of trials."""
        drivers = {driver_of(trial) for trial in trials}
        if not drivers or not self.driver or isinstance(self._place, JournalFile):
            return dict.fromkeys(drivers, Sign(seen_at=0.0, is_gone=True))  # of a study that only one may write
        signs = self._place.seen(drivers)
        for driver, sign in signs.items():
            self._first_seen.setdefault(driver, sign.seen_at)
        return signs

    def _look(self) -> list[FrozenTrial]:
        """Return the trials as they stand, by number, without those that somebody added with Optuna alone."""
        trials = self._place.ask(lambda: self._study.get_trials(deepcopy=False))
        self._ids.update((trial.number, trial._trial_id) for trial in trials)
        return [trial for trial in trials if "outcome" in trial.user_attrs]

    def _left(self) -> list[FrozenTrial]:
        """Return what runs by the record and not here."""
        return [t for t in self._look() if t.state is TrialState.RUNNING and t.number not in self._mine]

    def _unheard(self) -> list[FrozenTrial]:
        """Return what this driver has added without having heard so."""
        return [t for t in self._look() if driver_of(t) == self.driver and t.number not in self._mine]

    def fact(self, name: str) -> Any:
        """Return an attribute of the study, or None."""
        if self._held is not None and name in self._held:
            return self._held[name]
        return self._place.ask(lambda: self._study.user_attrs).get(name)

    def set_fact(self, name: str, value: Any) -> None:
        """Set an attribute of the study."""
        if self._held is not None:
            self._held[name] = value
        else:
            self._place.ask(lambda: self._study.set_user_attr(name, value))

    def part(self, name: str) -> Any:
        """Return this driver's part of a fact that every driver adds to, or None; the fact where it is alone."""
        return self._parts.get(name) if self.driver else self.fact(name)

    def parts(self, name: str) -> list[Any]:
        """Return all parts of a fact that every driver adds to."""
        return [value for key, value in self.facts(name).items() if key == name or key.startswith(f"{name}@")]

    def facts(self, prefix: str) -> dict[str, Any]:
        """Return the attributes of the study whose names begin so, by name."""
        attributes = self._place.ask(lambda: self._study.user_attrs)
        return {name: value for name, value in attributes.items() if name.startswith(prefix)}

    def set_part(self, name: str, value: Any) -> None:
        """Set this driver's part of a fact that every driver adds to."""
        self._parts[name] = value
        self.set_fact(f"{name}@{self.driver}" if self.driver else name, value)

    def unlearned(self) -> Iterator[tuple[FrozenTrial, TrialRecord]]:
        """Yield each trial of the record once that a sampler can learn from and did not propose itself here."""
        for trial in self._known.values() or self._look():
            if trial.number in self._learned or trial.number in self._mine or not trial.state.is_finished():
                continue
            self._learned.add(trial.number)
            if trial.params and trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
                yield trial, read_record(trial)

    def parameters(self, number: int) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
        """Return a trial's parameters and distributions, for a trial that continues it."""
        trial = self._place.ask(lambda: self._study._storage.get_trial(self._ids[number]))
        return dict(trial.params), dict(trial.distributions)

    def _values(self, record: TrialRecord) -> list[float] | None:
        if record.outcome is not Outcome.COMPLETE:
            return None
        return [float(record.value(objective.name)) for objective in self._objectives]


def _storage(place: JournalFile | Database) -> BaseStorage:
    return place.storage if isinstance(place, Database) else JournalStorage(place)
