"""A search on Ray, end to end: the same study, the same answers, whoever trains it."""

from pathlib import Path
from typing import Any

import pytest

import autopeft
from autopeft.spec.trial import Outcome

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def search(study: dict[str, Any], **changes: Any) -> autopeft.SearchResult:
    result = autopeft.search(**{**study, **changes})
    assert isinstance(result, autopeft.SearchResult)
    return result


def test_two_workers_answer_with_trained_adapters_and_resume(study: dict[str, Any]) -> None:
    result = search(study, executor="ray", n_workers=2)
    trials = result.state.trials
    assert {t.outcome for t in trials} <= {Outcome.COMPLETE, Outcome.STOPPED, Outcome.INFEASIBLE}, [t.reason for t in trials]
    assert len(result.front) >= 1
    assert set(result.state.tests) >= {t.number for t in result.front}
