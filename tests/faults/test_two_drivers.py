"""Two drivers at once on one study: the second is told who holds it, and a killed one holds nothing."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from autopeft.cli import main
from autopeft.errors import StudyLockedError
from autopeft.spec.model import ModelSummary
from autopeft.study import lease, remote_copy
from tests.faults.driver import check_whole, kill, search, start, wait_for
from tests.faults.test_signals import Deaf


def test_a_second_driver_is_refused_until_the_first_is_gone(tmp_path: Path, summary: ModelSummary) -> None:
    path, sign = tmp_path / "study", tmp_path / "sign"
    first = start(path, summary, n_trials=6, worker=Deaf(summary, sign))
    wait_for(sign.is_file)
    before = (path / "study.journal").read_bytes()
    with pytest.raises(StudyLockedError, match=rf"process {first.pid} .*wait for it"):
        search(path, summary, n_trials=6)
    assert (path / "study.journal").read_bytes() == before
    kill(first, signal.SIGKILL)
    first.join()
    search(path, summary, n_trials=6)
    check_whole(path, summary, n_trials=6)


def test_so_is_one_at_the_same_address(tmp_path: Path, summary: ModelSummary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.1)  # of the first, by which the second sees that it lives
    monkeypatch.setattr(remote_copy.AddressPlace, "settle_seconds", 0.05)
    location, sign = f"file://{tmp_path}/store/study", tmp_path / "sign"
    first = start(location, summary, n_trials=6, worker=Deaf(summary, sign), work_dir=str(tmp_path / "a"))
    wait_for(sign.is_file)
    parts = {path: path.read_bytes() for path in (tmp_path / "store" / "study" / "journal").iterdir()}
    with pytest.raises(StudyLockedError, match=rf"process {first.pid} .*holds {location}; wait for it"):
        search(location, summary, n_trials=6, work_dir=str(tmp_path / "b"))
    assert {path: path.read_bytes() for path in (tmp_path / "store" / "study" / "journal").iterdir()} == parts
    kill(first, signal.SIGKILL)
    first.join()
    assert (tmp_path / "store" / "study" / "lock.json").is_file()
    search(location, summary, n_trials=6, work_dir=str(tmp_path / "b"))  # its process is gone: no need to wait
    check_whole(tmp_path / "b" / "study", summary, n_trials=6)


def test_the_command_line_says_who_holds_the_study(
    study: dict[str, Any], tmp_path: Path, summary: ModelSummary
) -> None:
    """Before it reads a model or data."""
    sign = tmp_path / "sign"
    first = start(Path(study["output_dir"]) / "tiny", summary, worker=Deaf(summary, sign))
    wait_for(sign.is_file)
    (tmp_path / "study.yaml").write_text(json.dumps(study))  # JSON is YAML
    refused = CliRunner().invoke(main, ["search", str(tmp_path / "study.yaml")], catch_exceptions=False)
    kill(first, signal.SIGKILL)
    first.join()
    assert refused.exit_code == 2, refused.output
    assert f"process {first.pid} on " in refused.output
    assert "wait for it, or give this one another study_name" in refused.output
