"""A study's folder as one value, while it is searched and long after."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from autopeft.errors import ResultError
from autopeft.spec.messages import echo
from autopeft.spec.model import ModelSummary
from autopeft.spec.objective import find_objective
from autopeft.spec.state import StudyState
from autopeft.spec.study import StudySpec
from autopeft.spec.training import Training
from autopeft.spec.trial import Sample
from autopeft.study.folder import StudyFolder
from autopeft.study.store import StudyStore
from autopeft.study.test_scores import read_scores


def read_state(path: str | Path, *, storage: str | None = None, store: StudyStore | None = None) -> StudyState:
    """Read a study from the folder that a search writes, or from its address; changes nothing in it.

    Args:
        path: The folder.
        storage: Address of the database that keeps the record, where it has a password in it, which the folder's
            study file has not.
        store: The record, where it is open; it stays so.

    Raises:
        ResultError: The folder holds no study.
        MissingDependencyError, StorageError: The database cannot be used.
        StudyMismatchError: Another version of autopeft wrote it.
    """
    folder = StudyFolder.at(path)
    folder.fetch()
    values = folder.read_description()
    in_database = values is not None and values["spec"].get("storage") is not None
    if values is None or not (in_database or folder.journal.is_file()):
        raise ResultError(f"a study folder must hold study.json and study.journal, but {echo(str(path))} does not")
    spec = StudySpec(**values["spec"])
    if store is not None:
        return _state(folder, spec, values, store)
    opened = open_store(folder, spec, storage=storage)
    try:
        return _state(folder, spec, values, opened)
    finally:
        opened.close()


def open_store(folder: StudyFolder, spec: StudySpec, *, storage: str | None = None) -> StudyStore:
    """Open the record of a study to read it; arguments and errors as of `read_state`.

    Raises:
        KeyError: There is no such study yet.
    """
    objectives = [find_objective(name) for name in spec.objectives]
    address = storage or spec.storage
    return StudyStore.read(folder.journal, name=spec.study_name, objectives=objectives, storage=address)


def _state(folder: StudyFolder, spec: StudySpec, values: dict[str, Any], store: StudyStore) -> StudyState:
    return StudyState(
        folder=folder.path,
        spec=spec,
        model=ModelSummary.from_dict(values["model"]),
        training=Training(**values["training"]),
        metric=values["metric"],
        limits=values["limits"],
        n_full_examples=values["n_full_examples"],
        trials=store.records(),
        n_refused=dict(sum(map(Counter, store.parts("n_refused")), Counter[str]())),
        tests=read_scores(store),
        samples=_samples(folder),
        notes=tuple(values["notes"]),
        facts=values["facts"],
    )


def _samples(folder: StudyFolder) -> dict[int, tuple[Sample, ...]]:
    files = sorted(folder.samples(0).parent.glob("*.json"))
    return {
        int(file.stem): tuple(Sample(**values) for values in json.loads(file.read_text(encoding="utf-8")))
        for file in files
    }
