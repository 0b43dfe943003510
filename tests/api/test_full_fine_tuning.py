"""Full fine-tuning as a reference row: trained besides, compared with, and never on the front."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import autopeft
from autopeft import preparation
from autopeft.errors import StudyError
from autopeft.spec.learning_rates import default_learning_rate
from autopeft.spec.trial import Outcome, TrialRecord


def search(study: dict[str, Any], **changes: Any) -> autopeft.SearchResult:
    result = autopeft.search(**{**study, **changes})
    assert isinstance(result, autopeft.SearchResult)
    return result


def references(result: autopeft.SearchResult) -> list[TrialRecord]:
    return [trial for trial in result.state.trials if trial.baseline == "full"]


def test_the_whole_model_trains_besides_whatever_the_budget_says(
    study: dict[str, Any], tiny_bert: str, tmp_path: Path
) -> None:
    result = search(study, n_trials=1, full_fine_tuning=[1e-3, 3e-3], budget={"trainable_params": "10%"})
    first, second = references(result)
    model = result.state.model
    for trial, rate in ((first, 1e-3), (second, 3e-3)):
        assert trial.outcome is Outcome.COMPLETE
        assert trial.learning_rates["full"] == rate
        assert trial.estimate.trainable_params == model.n_parameters + model.n_head_parameters
        assert trial.estimate.trainable_params > result.state.limits["trainable_params"]
        assert trial.number in result.state.tests
        assert not trial.rungs
    assert not {first.number, second.number} & {trial.number for trial in result.front}
    assert result.state.full in (first, second)
    rows = result.leaderboard().set_index("number")
    assert rows.loc[first.number, "design"] == "full fine-tuning, learning rate 0.001"
    assert rows.loc[first.number, "baseline"] == "full"
    assert f"Full fine-tuning (trial {result.state.full.number}" in str(result)
    page = (result.state.folder / "report.html").read_text(encoding="utf-8")
    assert "for comparison, not on the front" in page
    written = json.loads((result.state.folder / "front.json").read_text(encoding="utf-8"))
    assert written["full_fine_tuning"]["trial"] == result.state.full.number

    exported = result.export(first, tmp_path / "tuned")
    loaded, _ = autopeft.load(exported)
    base = autopeft.load(result.export(result.front[0], tmp_path / "adapter"))[0]
    moved = [
        name
        for name, parameter in base.named_parameters()
        if name in dict(loaded.named_parameters()) and not torch.equal(parameter, loaded.get_parameter(name))
    ]
    assert len(moved) > 20


def test_it_can_be_asked_for_later_and_is_trained_once(study: dict[str, Any]) -> None:
    before = search(study, n_trials=1)
    assert not references(before)
    asked = search(study, n_trials=1, full_fine_tuning=1e-3)
    assert len(references(asked)) == 1
    again = search(study, n_trials=1, full_fine_tuning=1e-3)
    assert again.state.trials == asked.state.trials
    assert [t.learning_rates["full"] for t in references(search(study, n_trials=1, full_fine_tuning=True))] == [
        1e-3,
        default_learning_rate("full"),
    ]


def test_it_is_left_out_where_the_device_is_too_small(
    study: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(preparation, "memory_bytes", lambda device: 2**20)
    result = search(study, n_trials=1, full_fine_tuning=True)
    assert "no design of the space is likely to fit" in caplog.text, "a warning: the designs are trained all the same"
    (left_out,) = references(result)
    assert left_out.outcome is Outcome.INFEASIBLE
    assert "of memory, and the device has 1.0 MiB" in left_out.reason
    assert f"Full fine-tuning (trial {left_out.number}) gives no reference: infeasible, it needs" in str(result)


@pytest.mark.parametrize("value", ["yes please", 0, -1e-3, ["fast"]])
def test_what_it_cannot_be_is_said(study: dict[str, Any], value: Any) -> None:
    with pytest.raises(StudyError, match="full_fine_tuning"):
        search(study, full_fine_tuning=value)
