"""The address of a study cannot be reached any more in the middle of a search; then it can again."""

from pathlib import Path

import pytest

from autopeft.spec.model import ModelSummary
from autopeft.study import address, remote_copy
from tests.faults.driver import check_whole, complete, records, start, wait_for_size
from tests.faults.test_lost_machine import copy_of

N_TRIALS = 20


@pytest.mark.parametrize("is_another", [True, False], ids=["another", "gone"])
def test_an_address_that_is_away_ends_the_search_and_the_same_command_goes_on(
    is_another: bool,
    tmp_path: Path,
    summary: ModelSummary,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Whatever is below a file cannot be reached; a folder that is unmounted leaves an empty one, or none."""
    monkeypatch.setattr(address, "PAUSES_SECONDS", (0.05, 0.05))
    monkeypatch.setattr(remote_copy.AddressPlace, "settle_seconds", 0.05)
    disk, store, other = (tmp_path / name for name in ("disk", "store", "other"))
    disk.mkdir()
    store.symlink_to(disk)
    if is_another:
        other.write_bytes(b"")
    else:
        other.symlink_to(tmp_path / "empty")
        (tmp_path / "empty").mkdir()
    location, work_dir = f"file://{store}/study", str(tmp_path / "work")
    process = start(location, summary, n_trials=N_TRIALS, work_dir=work_dir)
    wait_for_size(process, tmp_path / "work" / "study" / "study.journal", 20_000)
    other.replace(store)  # in one step
    process.join()
    assert process.exitcode == 6
    said = capfd.readouterr().err
    assert f"error: {location} must be reachable, but " in said
    assert "the same command goes on" in said
    assert not [*(tmp_path / "empty").glob("*")], "nothing is begun anew elsewhere"
    store.unlink()
    store.symlink_to(disk)
    known = complete(records(copy_of(location, tmp_path / "reader"), summary))
    assert known
    process = start(location, summary, n_trials=N_TRIALS, work_dir=work_dir)
    process.join()
    assert process.exitcode == 0
    after = complete(check_whole(copy_of(location, tmp_path / "another reader"), summary, n_trials=N_TRIALS))
    assert {number: after[number] for number in known} == known
