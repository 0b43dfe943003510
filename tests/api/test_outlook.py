"""What is said before a search trains anything: whether its device is large enough, and how long it takes."""

import math
import random
from dataclasses import replace
from html import escape
from typing import Any

import pytest

import autopeft
from autopeft import outlook, preparation
from autopeft.errors import StudyError
from autopeft.outlook import dry_run, memory_warning
from autopeft.preparation import prepare_study
from autopeft.prepared import PreparedStudy
from autopeft.spec.space import RandomChooser, SearchSpace
from autopeft.spec.study import make_study
from autopeft.training.device import timed_design


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep samples small: what they are drawn for is the same for few designs."""
    monkeypatch.setattr(outlook, "N_DRAWS", 6)


def prepared(study: dict[str, Any]) -> PreparedStudy:
    return prepare_study(make_study(study))


def test_a_device_that_holds_no_design_is_named_before_training(study: dict[str, Any]) -> None:
    ready = prepared(study)
    assert memory_warning(ready) == ""
    least = min(ready.estimator(design).peak_memory for design in ready.smallest())
    assert memory_warning(replace(ready, memory_bytes=least)) == "", "what just fits fits"
    small = replace(ready, memory_bytes=least - 1)
    warning = memory_warning(small)
    assert "no design of the space is likely to fit" in warning
    assert "lower training.batch_size (16) or training.max_length" in warning
    assert "checkpointing" in warning
    assert "nf4" not in warning.rpartition(";")[2], "the space has it already"
    assert dry_run(small).notes[0] == f"warning: {warning}"


def test_a_dry_run_reads_as_on_the_command_line_and_says_how_far_it_is(study: dict[str, Any]) -> None:
    stages: list[str] = []
    ready = prepare_study(make_study({**study, "budget": {"peak_memory": "1.5x yardstick"}}), on_stage=stages.append)
    answer = dry_run(ready, stages.append)
    lines = str(answer).splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["space", "budget", "feasible", "time"]
    assert lines[1].startswith("budget    peak_memory ")
    assert lines[1].endswith(" (1.5x yardstick)")
    assert "DryRun" not in str(answer)
    assert answer._repr_html_() == f"<pre>{escape(str(answer))}</pre>"
    assert "time      not known: no training step was timed" in str(replace(answer, predicted_seconds=math.nan))
    assert stages[:2] == ["reading the data", "building the model without its weights"]
    counted = [stage for stage in stages if stage.startswith("costs of ")]
    assert counted[-1] == f"costs of {answer.n_estimated} of {answer.n_estimated} random designs"


def test_predicted_time_follows_what_the_designs_of_the_space_compute(study: dict[str, Any]) -> None:
    ready = prepared({**study, "budget": {}})

    def seconds(**layers: Any) -> float:
        space = SearchSpace.from_dict({"blocks": {"lora": {"rank": [1, 2], **layers}}})
        return dry_run(replace(ready, space=space)).predicted_seconds

    assert 0 < seconds(layers={"last": 1}) < seconds(layers="all"), "gradients go no further than the last layer"
    tight = replace(ready, limits={"trainable_params": 1})
    assert dry_run(tight).feasible_share == 0
    assert dry_run(tight).predicted_seconds > 0, "it is said for a budget that leaves nothing of the sample too"
    speed = ready.seconds_per_flop()
    assert speed is not None
    timed = ready.estimator(timed_design())
    assert speed * timed.train_flops == pytest.approx(ready.step_seconds["fp32/sdpa"] * ready.workload.n_steps)


def test_the_feasible_share_is_that_of_every_draw(study: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlook, "N_DRAWS", 60)
    space = SearchSpace.from_dict({"blocks": {"lora": {"rank": [1, 2, 4], "layers": {"last": {"int": [1, "n"]}}}}})
    ready = replace(prepared({**study, "budget": {}}), space=space)
    chooser = RandomChooser(random.Random(ready.spec.seed))
    designs = [space.draw(chooser, ready.model).design for _ in range(60)]
    peaks = sorted(ready.estimator(design).peak_memory for design in designs)
    for limit in (peaks[0] - 1, peaks[20], peaks[-1]):
        answer = dry_run(replace(ready, limits={"peak_memory": limit}))
        assert answer.n_drawn == answer.n_estimated == 60
        assert answer.feasible_share == sum(peak <= limit for peak in peaks) / 60


def test_why_every_estimate_is_slow_is_said(study: dict[str, Any]) -> None:
    ready = prepared({**study, "training": {**study["training"], "checkpointing": True}})
    assert any("again in the backward pass" in note for note in dry_run(ready).notes)


def test_a_sampler_that_cannot_search_the_space_says_so_before_anything_is_measured(
    study: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "choose_training", lambda *_, **__: pytest.fail("it was measured"))
    with pytest.raises(StudyError, match="sampler gp needs a space whose designs all have the same parameters"):
        autopeft.search(**study, sampler="gp")
