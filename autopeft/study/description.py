"""What the drivers of a shared study agree on: the resolved study file of the one that began it.

It is kept in the database beside the trials. A driver that joins later, from a folder of its own, takes over what was
chosen and measured once (kernel, precision, reference point), and is refused where it searches something else.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from autopeft.spec.objective import find_objective
from autopeft.spec.study import StudySpec
from autopeft.study.folder import StudyFolder
from autopeft.study.store import StudyStore

_FACT = "study"


def fetch_description(spec: StudySpec, folder: StudyFolder) -> None:
    """Write the study file of a shared study into a folder that has none; nothing where the study is still to begin.

    Raises:
        MissingDependencyError, StorageError: The database cannot be used.
    """
    if spec.storage is None:
        return
    try:
        store = StudyStore.read(folder.journal, name=spec.study_name, objectives=(), storage=spec.storage)
    except KeyError:
        return
    description = store.fact(_FACT)
    store.close()
    if description is not None and folder.read_description() is None:
        folder.write_json(folder.description, description)


def check_storage(spec: StudySpec) -> None:
    """Connect to the database of a study, where it has one, and change nothing in it.

    Raises:
        MissingDependencyError, StorageError: It cannot be used.
    """
    if spec.storage is not None:
        with suppress(KeyError):  # no study yet
            StudyStore.read(spec.folder, name=spec.study_name, objectives=(), storage=spec.storage).close()


def agree(spec: StudySpec, folder: StudyFolder, description: Mapping[str, Any]) -> bool:
    """Make a study file that of all drivers; return False where another driver was faster with a different one.

    That one's is then in the folder, and the study is to be prepared once more.
    """
    if spec.storage is None:
        return True
    objectives = [find_objective(name) for name in spec.objectives]
    store = StudyStore.create(folder.journal, name=spec.study_name, objectives=objectives, storage=spec.storage)
    try:
        with store.turn():
            known = store.fact(_FACT)
            if known is None:
                store.set_fact(_FACT, dict(description))
                return True
        mine = json.loads(json.dumps(description))
        if all(known[key] == mine[key] for key in ("training", "fingerprints")):
            return True
        folder.write_json(folder.description, known)
        return False
    finally:
        store.close()
