"""Limits that are relative to the yardstick: worked out once, and kept by the study."""

from typing import Any

import pytest

from autopeft.limits import settle_limits
from autopeft.preparation import prepare_study
from autopeft.prepared import PreparedStudy
from autopeft.spec.design import Design
from autopeft.spec.study import DEFAULT_YARDSTICK, StudySpec, make_study
from tests.api.conftest import tiny_study
from tests.tasks.generated import reviews, save_tiny_bert

RELATIVE = {"peak_memory": "1.5x yardstick", "adapter_bytes": "2x yardstick"}


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("limits")
    reviews(300).to_csv(folder / "reviews.csv", index=False)
    model = save_tiny_bert(folder / "model")
    return {**tiny_study(model, str(folder / "reviews.csv"), folder, trainable_params="50%"), "budget": RELATIVE}


@pytest.fixture(scope="module")
def ready(values: dict[str, Any]) -> PreparedStudy:
    return prepare_study(make_study(values))


def settled(ready: PreparedStudy, spec: StudySpec, known: dict[str, Any]) -> dict[str, int]:
    return settle_limits(spec, ready.model, ready.estimator, known)


def test_a_limit_is_a_multiple_of_the_estimate_of_the_yardstick(ready: PreparedStudy) -> None:
    cost = ready.estimator(Design.from_dict(DEFAULT_YARDSTICK).resolve(ready.model))
    assert ready.limits == {"peak_memory": int(1.5 * cost.peak_memory), "adapter_bytes": 2 * cost.adapter_bytes}
    described = ready.description()
    assert described["limits"] == described["fingerprints"]["budget"] == ready.limits
    assert described["spec"]["budget"] == RELATIVE


def test_a_resumed_study_keeps_the_amounts_that_it_began_with(ready: PreparedStudy, values: dict[str, Any]) -> None:
    known = {**ready.description(), "limits": {"peak_memory": 123, "adapter_bytes": 45}}
    assert settled(ready, ready.spec, known) == known["limits"], "whatever the estimator says now"
    spelled = make_study({**values, "budget": {"peak_memory": "1.50 X yardstick", "adapter_bytes": "2x yardstick"}})
    assert settled(ready, spelled, known) == known["limits"], "the same multiple, written in another way"
    other = make_study({**values, "budget": {**RELATIVE, "peak_memory": "1.6x yardstick"}})
    assert settled(ready, other, known)["peak_memory"] > ready.limits["peak_memory"]
    assert settled(ready, other, known)["adapter_bytes"] == 45
    smaller = {"blocks": [{"lora": {"rank": 1, "roles": ["query"]}}]}
    assert settled(ready, make_study({**values, "yardstick": smaller}), known)["adapter_bytes"] not in (
        45,
        ready.limits["adapter_bytes"],
    ), "of another yardstick it is another amount"
