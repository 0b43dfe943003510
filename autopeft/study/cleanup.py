"""What a study's folder holds that nothing needs any more, and how it is deleted.

A checkpoint is needed by a trial that may train on, and by a finished design that the final check has yet to
score. The record, predictions, logs and everything that was written for people is always kept.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from autopeft.spec.state import StudyState
from autopeft.spec.trial import Outcome, TrialRecord
from autopeft.study.folder import StudyFolder
from autopeft.study.front import compared
from autopeft.study.state import read_state

_NEVER_GO_ON = (Outcome.FAILED, Outcome.OUT_OF_MEMORY, Outcome.INFEASIBLE)


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """A file or folder that can go.

    Attributes:
        path: Below the study's folder.
        why: What it was.
    """

    path: Path
    n_bytes: int
    why: str


def clean(
    path: str | Path, *, stopped: bool = False, adapters: bool = False, dry_run: bool = False
) -> tuple[Leftover, ...]:
    """Delete what a study does not need any more, and return what that was; see `leftovers`.

    Args:
        path: The study's folder.
        stopped: As in `leftovers`.
        adapters: As in `leftovers`.
        dry_run: Delete nothing.

    Raises:
        ResultError: The folder holds no study.
        StudyLockedError: A search holds it.
    """
    state = read_state(path)
    folder = StudyFolder(state.folder)
    if dry_run:
        folder.fetch(everything=True)
        return leftovers(state, stopped=stopped, adapters=adapters)
    folder.acquire()
    try:
        found = leftovers(read_state(path), stopped=stopped, adapters=adapters)
        for leftover in found:
            for file in sorted(leftover.path.rglob("*")) if leftover.path.is_dir() else [leftover.path]:
                if not file.is_dir():
                    folder.remove(file)
            if leftover.path.is_dir():
                shutil.rmtree(leftover.path)
        return found
    finally:
        folder.release()


def leftovers(state: StudyState, *, stopped: bool = False, adapters: bool = False) -> tuple[Leftover, ...]:
    """Return what the study does not need any more.

    Args:
        state: The study, which nobody is searching.
        stopped: Count the checkpoints of stopped trials in: one that later results promote starts afresh then.
        adapters: Count the adapters in that are neither on the front nor a baseline's.
    """
    folder = StudyFolder(state.folder)
    continued = {trial.continues for trial in state.trials}
    scored_last = compared(state.trials, state.objectives)
    waiting = {t.number for t in scored_last if t.number not in state.tests} if state.facts.get("n_test") else set()
    reasons = {
        file: f"checkpoint, {why}"
        for trial in state.trials
        if (why := _why(trial, continued, waiting, stopped=stopped))
        for file in folder.checkpoints.files(trial.number)
    }
    if adapters:
        kept = {trial.number for trial in scored_last}
        off = [folder.adapter(trial.number) for trial in state.trials if trial.number not in kept]
        reasons |= dict.fromkeys(off, "adapter, off the front")
    reasons |= dict.fromkeys(sorted((state.folder / "checkpoints" / "damaged").glob("*")), "checkpoint, damaged")
    for part in ("checkpoints", "adapters"):
        reasons |= dict.fromkeys(sorted((state.folder / part).rglob("*.tmp")), "write that was cut short")
    inside = [path for path in reasons if not reasons.keys() & set(path.parents) and path.exists()]
    return tuple(Leftover(path=path, n_bytes=_n_bytes(path), why=reasons[path]) for path in inside)


def _why(trial: TrialRecord, continued: set[int | None], waiting: set[int], *, stopped: bool) -> str:
    """Say why a trial's checkpoint can go; empty where it is needed."""
    if trial.number in continued:
        return "a later trial went on from it"
    if trial.outcome in _NEVER_GO_ON:
        return trial.outcome.value.replace("_", " ")
    if trial.outcome is Outcome.COMPLETE and trial.number not in waiting:
        return "trained in full"
    return "stopped" if stopped and trial.outcome is Outcome.STOPPED else ""


def _n_bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
