"""What of a study's files can go, and what never does."""

from pathlib import Path

import pytest

from autopeft.errors import StudyLockedError
from autopeft.results.result import SearchResult
from autopeft.spec.state import StudyState
from autopeft.spec.trial import Outcome
from autopeft.study.checkpoints import trial_of
from autopeft.study.cleanup import leftovers
from autopeft.study.folder import StudyFolder
from tests.results.generated import Builder, fill, lora


@pytest.fixture
def state(tmp_path: Path) -> StudyState:
    """Return a study of every outcome, with a checkpoint for each trial."""
    build = fill(Builder(folder=tmp_path / "reviews"))
    # A better one than all that the final check has seen: it has yet to be scored.
    build.add(lora(1, [5]), params=149_000, skill=0.83)
    state = build.state()
    state = build.state(facts={**state.facts, "n_test": 800})
    folder = StudyFolder(state.folder)
    for trial in state.trials:
        folder.checkpoints.save(trial.number, 1, b"x" * (trial.number + 1))
    return state


def checkpoints(state: StudyState, **options: bool) -> set[int]:
    found = leftovers(state, **options)
    return {number for item in found if (number := trial_of(item.path)) is not None}


def test_what_may_train_on_or_waits_for_its_check_is_kept(state: StudyState) -> None:
    kept = {t.number for t in state.trials} - checkpoints(state)
    continued = {t.continues for t in state.trials}
    expected = {
        t.number
        for t in state.trials
        if t.number not in continued and t.outcome in (Outcome.STOPPED, Outcome.INTERRUPTED, Outcome.RUNNING)
    }
    assert kept == {*expected, state.trials[-1].number}
    stopped = {t.number for t in state.trials if t.outcome is Outcome.STOPPED}
    assert checkpoints(state, stopped=True) == checkpoints(state) | stopped


def test_without_a_test_split_nothing_waits(state: StudyState) -> None:
    untested = checkpoints(StudyState(**{**vars(state), "facts": {"n_test": 0}}))
    assert untested == {*checkpoints(state), state.trials[-1].number}


def test_adapters_of_the_front_and_of_baselines_stay(state: StudyState) -> None:
    assert not [item for item in leftovers(state) if item.path.parent.name == "adapters"]
    gone = {int(i.path.name) for i in leftovers(state, adapters=True) if i.path.parent.name == "adapters"}
    complete = {t.number for t in state.trials if t.outcome is Outcome.COMPLETE}
    wanted = {t.number for t in SearchResult(state).front} | {t.number for t in state.trials if t.baseline}
    assert gone == complete - wanted


def test_torn_writes_go_and_sizes_are_true(state: StudyState) -> None:
    (state.folder / "checkpoints" / "3.safetensors.tmp").write_bytes(b"12345")
    found = leftovers(state, adapters=True)
    assert sum(item.why == "write that was cut short" for item in found) == 1
    files = [file for item in found for file in ([item.path] if item.path.is_file() else item.path.rglob("*"))]
    assert len(set(files)) == len(files)
    assert sum(item.n_bytes for item in found) == sum(file.stat().st_size for file in files)


def test_whether_a_search_holds_a_folder(tmp_path: Path) -> None:
    one, other = StudyFolder(tmp_path), StudyFolder(tmp_path)
    assert not other.is_held()
    assert not (tmp_path / ".lock").exists()
    one.acquire()
    assert other.is_held()
    assert other.is_held()
    with pytest.raises(StudyLockedError):
        other.acquire()
    one.release()
    assert not other.is_held()
