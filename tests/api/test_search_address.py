"""A study at an address whose search does not end well."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import autopeft
from autopeft import api
from autopeft.errors import SearchError, StorageError
from autopeft.spec.trial import Segment, SegmentResult, SegmentStatus
from autopeft.study.folder import StudyFolder
from autopeft.study.remote_copy import RemoteCopy


class Failing:
    def run(self, segment: Segment, should_stop: Callable[[], bool]) -> SegmentResult:
        return SegmentResult(trial=segment.trial, status=SegmentStatus.FAILED, error="ValueError: it broke")


def test_the_logs_of_a_search_that_fails_are_at_the_address(
    study: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "make_worker", lambda _: Failing())
    with pytest.raises(SearchError, match="5 trials in a row failed"):
        autopeft.search(**{**study, "output_dir": "memory://failing", "work_dir": str(tmp_path)})
    store = RemoteCopy("memory://failing/tiny")
    log, events = store.read("search.log"), store.read("search.jsonl")
    assert log is not None
    assert log.count(b"it broke") == 5
    assert events is not None
    assert [json.loads(line)["event"] for line in events.splitlines()].count("finished") == 5
    assert not store.lease.is_held()


def test_what_cannot_be_published_does_not_hide_why_the_search_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: StudyFolder, *_: Path) -> None:
        raise StorageError("the address must be reachable")

    monkeypatch.setattr(StudyFolder, "publish", refuse)
    with pytest.raises(SearchError, match="5 trials"), api._publish_at_an_error(StudyFolder(tmp_path)):
        raise SearchError("5 trials in a row failed")
