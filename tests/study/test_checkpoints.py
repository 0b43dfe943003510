"""Checkpoints: damage of any kind is noticed, and costs a trial no more than a rung."""

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.spec.trial import Outcome
from autopeft.study.checkpoints import N_KEPT, Checkpoints, trial_of
from autopeft.study.folder import StudyFolder
from autopeft.study.test_scores import read_scores
from tests.bench import FULL, Bench, KnownWorker


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return StudyFolder(tmp_path).checkpoints


def test_the_last_two_of_each_trial_stay(checkpoints: Checkpoints, tmp_path: Path) -> None:
    for examples in (10, 20, 100):
        checkpoints.save(7, examples, f"{examples}".encode())
    checkpoints.save(70, 5, b"another trial's")
    for found in (checkpoints, StudyFolder(tmp_path).checkpoints):
        assert len(found.files(7)) == N_KEPT == 2
        assert found.last(7, up_to=FULL) == (100, b"100")
        assert found.last(7, up_to=99) == (20, b"20")
        assert found.last(7, up_to=19) is None
        assert found.at(7, 20) == b"20"
        assert found.at(7, 50) is None
        assert found.last(70, up_to=5) == (5, b"another trial's")
        assert found.files(71) == ()
        assert {trial_of(path) for path in found.path.iterdir()} == {7, 70}


@given(content=st.binary(min_size=1, max_size=50), data=st.data())
def test_any_flipped_bit_and_any_cut_is_noticed(
    content: bytes, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    checkpoints = StudyFolder(tmp_path_factory.mktemp("study")).checkpoints
    checkpoints.save(0, 10, b"the one before")
    path = checkpoints.save(0, 20, content)
    if data.draw(st.booleans()):
        damaged = bytearray(content)
        damaged[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(damaged)
    else:
        path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    assert checkpoints.last(0, up_to=20) == (10, b"the one before")
    assert not path.exists()
    assert (path.parent / "damaged" / path.name).is_file()


def test_one_that_is_gone_or_no_file_is_damaged_too(checkpoints: Checkpoints, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints.save(3, 10, b"x").unlink()
    with caplog.at_level(logging.WARNING, "autopeft"):
        assert checkpoints.last(3, up_to=10) is None
    assert "checkpoint of trial 3 after 10 examples is damaged: it cannot be read" in caplog.text


def cut_short(bench: Bench) -> int:
    """Search until a trial that has been scored at its first rungs is cut short; return its number."""
    worker = KnownWorker(bench.model)
    records = bench.run(worker, n_trials=16, should_stop=lambda: len(worker.segments) > 9).records()
    trial = next(r for r in records if r.outcome is Outcome.INTERRUPTED)
    assert trial.examples > 0
    return trial.number


@pytest.mark.parametrize("all_of_them", [False, True])
def test_a_trial_with_a_damaged_checkpoint_goes_back(
    bench: Bench, all_of_them: bool, caplog: pytest.LogCaptureFixture
) -> None:
    number = cut_short(bench)
    before = {r.number: r for r in bench.store().records() if r.outcome is Outcome.COMPLETE}
    last = bench.folder.checkpoints.files(number)[-1]
    for file in last.parent.glob("*.safetensors") if all_of_them else [last]:
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    worker = KnownWorker(bench.model)  # it asserts that each checkpoint is that of the place a segment starts from
    with caplog.at_level(logging.WARNING, "autopeft"):
        records = bench.run(worker, n_trials=16).records()
    assert f"the checkpoint of trial {number} after" in caplog.text
    assert "it does not match its checksum" in caplog.text
    successor = next(r for r in records if r.continues == number)
    first = next(s for s in worker.segments if s.trial == successor.number)
    assert first.start < records[number].examples
    if all_of_them:
        assert (first.start, first.checkpoint) == (0, None)
    assert successor.outcome in (Outcome.COMPLETE, Outcome.STOPPED)
    assert {number: records[number] for number in before} == before


def test_a_design_whose_last_checkpoint_is_damaged_stays_complete(bench: Bench) -> None:
    """The final check alone needs it."""

    class Careful(KnownWorker):
        def run(self, segment, should_stop):  # type: ignore[no-untyped-def]
            assert segment.stage != "test" or segment.checkpoint is None or segment.start == FULL
            return super().run(segment, should_stop)

    store = bench.run(Careful(bench.model), n_trials=8, test=False)
    complete = {r.number for r in store.records() if r.outcome is Outcome.COMPLETE}
    for number in complete:
        for file in bench.folder.checkpoints.files(number):
            file.write_bytes(b"?")
    worker = Careful(bench.model)
    store = bench.run(worker, n_trials=8)
    assert {s.trial for s in worker.segments} == set(read_scores(store))
    assert {r.number for r in store.records() if r.outcome is Outcome.COMPLETE} == complete
