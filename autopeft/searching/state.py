"""A study's folder as one value, while it is searched and long after."""

import json
from pathlib import Path

from autopeft.errors import ResultError
from autopeft.searching.folder import StudyFolder
from autopeft.searching.storage import StudyStore
from autopeft.spec.model import ModelSummary
from autopeft.spec.objective import find_objective
from autopeft.spec.state import StudyState, TestScore
from autopeft.spec.study import StudySpec
from autopeft.spec.training import Training
from autopeft.spec.trial import Sample


def read_state(path: str | Path) -> StudyState:
    """Read a study from the folder that a search writes; changes nothing in it.

    Raises:
        ResultError: The folder holds no study.
        StudyMismatchError: Another version of autopeft wrote it.
    """
    folder = StudyFolder(Path(path))
    values = folder.read_description()
    if values is None or not folder.journal.is_file():
        raise ResultError(f"a study folder must hold study.json and study.journal, but {str(path)!r} does not")
    spec = StudySpec(**values["spec"])
    objectives = [find_objective(name) for name in spec.objectives]
    store = StudyStore.read(folder.journal, name=spec.study_name, objectives=objectives)
    return StudyState(
        folder=folder.path,
        spec=spec,
        model=ModelSummary.from_dict(values["model"]),
        training=Training(**values["training"]),
        metric=values["metric"],
        limits=values["limits"],
        n_full_examples=values["n_full_examples"],
        trials=store.records(),
        n_refused=store.fact("n_refused") or {},
        tests={int(number): TestScore(**scores) for number, scores in (store.fact("tests") or {}).items()},
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
