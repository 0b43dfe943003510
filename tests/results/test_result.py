import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from autopeft.errors import ResultError
from autopeft.results.drawing import cost_ticks
from autopeft.results.plots import draw_front
from autopeft.results.result import SearchResult
from autopeft.results.summary import unchecked_words
from autopeft.spec.design import Design
from autopeft.spec.state import StudyState
from autopeft.spec.trial import Outcome
from autopeft.study.front import pareto_front
from tests.results.generated import Builder, fill, lora


def test_the_front_is_a_sequence_from_cheap_to_good(result: SearchResult, state: StudyState) -> None:
    assert tuple(result.front) == pareto_front(state.trials, state.objectives)
    assert [record.number for record in result.front[:2]] == [1, 2]
    costs = [record.estimate.trainable_params for record in result.front]
    scores = [record.scores["accuracy"] for record in result.front]
    assert costs == sorted(costs)
    assert scores == sorted(scores)
    frame = result.front.to_frame()
    assert frame["number"].tolist() == [record.number for record in result.front]


def test_the_front_shows_itself_in_words(result: SearchResult) -> None:
    text, html = repr(result.front), result.front._repr_html_()
    for record in result.front:
        assert record.design.describe() in text
        assert record.design.describe() in html
    assert "0.822 ± 0.016" in text


def test_a_result_is_one_line_in_a_list_and_a_few_when_printed(result: SearchResult, build: Builder) -> None:
    assert repr(result).startswith(
        "<SearchResult reviews: 20 trials, front of 7, best accuracy 0.822 ± 0.016 (trial 18)"
    )
    assert "\n" not in repr(result)
    assert str(result) == result.summary()
    assert "0 trials, no front" in repr(SearchResult(build.state()))


def test_an_interactive_plot_is_a_plotly_figure(result: SearchResult) -> None:
    figure = result.plot(interactive=True)
    assert "front" in [trace.name for trace in figure.data]
    assert result.plot().axes


def test_an_empty_front_shows_why(build: Builder) -> None:
    build.add(lora(2), params=1000, outcome=Outcome.FAILED, reason="ValueError: <b>")
    front = SearchResult(build.state()).front
    assert "1 failed" in repr(front)
    assert "&lt;b&gt;" in front._repr_html_()
    assert len(front.to_frame()) == 0


def test_save_writes_the_front_as_data_picture_and_report(build: Builder) -> None:
    result = SearchResult(fill(build).state())
    paths = result.save()
    assert paths == result.paths()
    assert all(path.exists() for path in paths.values())
    assert paths["picture"].read_bytes().startswith(b"\x89PNG")
    values = json.loads(paths["front"].read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert values["schema_version"] == 1
    assert [design["trial"] for design in values["designs"]] == [record.number for record in result.front]
    for design, record in zip(values["designs"], result.front, strict=True):
        assert Design.from_dict(design["design"]) == record.design
        assert design["validation"]["accuracy"]["value"] == record.scores["accuracy"]
        assert design["predicted"]["peak_memory"] == record.estimate.peak_memory
        assert design["measured"]["peak_memory"] == record.measured.peak_memory
        assert (build.folder / design["adapter"]).is_dir()
        assert design["test"]["accuracy"]["value"] == result.state.tests[record.number].scores["accuracy"]
    assert values["yardstick"]["trial"] == 0
    assert str(build.folder) not in paths["front"].read_text()


def test_a_study_without_a_front_can_be_saved(build: Builder) -> None:
    build.add(lora(2), params=1000, outcome=Outcome.FAILED, reason="ValueError")
    result = SearchResult(build.state(), stopped_by=signal.SIGINT)
    assert json.loads(result.save()["front"].read_text())["designs"] == []
    assert "There is no front" in result.summary()
    assert "interrupted" in result.summary()


def test_what_the_time_did_not_allow_is_said(build: Builder) -> None:
    for params, skill in ((1000, 0.6), (2000, 0.9)):
        build.add(lora(2), params=params, skill=skill, tested=True)
    build.add(lora(4), params=3000, outcome=Outcome.INTERRUPTED, share=0.0)
    state = replace(build.state(), tests={})
    assert "Time is up" not in SearchResult(state).summary()
    assert "no test score" not in SearchResult(state).summary(), "nothing says that there is a test split"
    state = replace(state, facts={**state.facts, "n_test": 800})
    result = SearchResult(state, time_is_up=True)
    text = result.summary()
    assert "Time is up: 2 of 64 designs started; the same command goes on" in text
    assert "2 of 2 designs of the front have no test score yet; the same command checks them." in text
    assert "Time is up: 2 of 64" in result.report(build.folder / "report.html").read_text()
    some = replace(state, tests={0: build.tests[0]})
    assert "1 of 2 designs of the front has no test score yet; the same command checks it." in unchecked_words(some)
    assert not unchecked_words(replace(state, tests=dict(build.tests)))


def test_export_copies_the_adapter(result: SearchResult, tmp_path: Path) -> None:
    best = result.best()
    target = result.export(best, tmp_path / "deep" / "mine")
    source = result.state.folder / "adapters" / str(best.number)
    tensors = "adapter_model.safetensors"
    assert (target / tensors).read_bytes() == (source / tensors).read_bytes()
    (tmp_path / "empty").mkdir()
    assert result.export(best.number, tmp_path / "empty") == tmp_path / "empty"


def test_export_refuses_what_is_not_there_and_what_would_be_lost(build: Builder, tmp_path: Path) -> None:
    result = SearchResult(fill(build).state())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("all of it")
    with pytest.raises(ResultError, match="has content; choose another"):
        result.export(0, tmp_path / "full")
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["thesis.tex"]
    for number, outcome in ((14, "infeasible"), (10, "stopped"), (17, "out of memory"), (21, "interrupted")):
        with pytest.raises(ResultError, match=f"trial {number} is {outcome}; the front has 1, 2, "):
            result.export(number, tmp_path / "new")
    (build.folder / "adapters/0/autopeft.json").unlink()
    with pytest.raises(ResultError, match="it is not there"):
        result.export(0, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_summary_says_what_was_tried_and_what_was_gained(result: SearchResult) -> None:
    text = result.summary()
    assert (
        "12 complete, 3 stopped, 2 infeasible, 1 failed, 1 out of memory, 1 interrupted; 12 proposals refused" in text
    )
    assert "best: 0.822 ± 0.016" in text
    assert "no design that costs no more scored better" in text
    assert "on test" in text


def test_a_gain_within_noise_is_called_a_tie(build: Builder) -> None:
    build.add(lora(8), params=200_000, skill=0.800, baseline="yardstick")
    build.add(lora(4), params=100_000, skill=0.803)
    text = SearchResult(build.state()).summary()
    assert "within noise: a tie" in text
    assert "2.0x less trainable parameters" in text
    assert "looks larger than it is" in text
    assert "clearly" not in text


def test_the_plot_shows_every_trial(state: StudyState) -> None:
    figure = draw_front(state)
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    points = sum(len(group.get_offsets()) for group in axes.collections if hasattr(group, "get_sizes"))
    lines = {line.get_label(): line for line in axes.lines}
    ticks, front = lines["never scored"], pareto_front(state.trials, state.objectives)
    # The yardstick lies on the front here, and is drawn on top of it.
    assert points + len(ticks.get_xdata()) + len(front) == len(state.chains) + 1
    assert {text.get_text() for text in axes.get_legend().get_texts()} >= {
        "front, 95 % interval",
        "yardstick",
        "budget",
    }


def test_axis_ticks_are_round_in_their_unit(state: StudyState) -> None:
    assert 200_000 in cost_ticks(state)
    spec = state.spec.model_copy(update={"objectives": ("accuracy", "peak_memory", "trainable_params")})
    memory = replace(state, spec=spec)
    assert cost_ticks(memory) == [2.0**27, 2.0**28, 2.0**29, 2.0**30]
    draw_front(memory)  # three objectives: no line, and no error


def test_empty_studies_can_be_drawn(build: Builder) -> None:
    figure = draw_front(build.state())
    figure.savefig(build.folder / "empty.png")
    assert (build.folder / "empty.png").stat().st_size > 0
