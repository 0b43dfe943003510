import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autopeft.results.charts import front_chart, memory_chart, rung_chart, time_chart
from autopeft.results.diagnostics import memory_errors, rung_counts, throughput, trained_flops, written
from autopeft.results.report import render_report, study_yaml
from autopeft.results.result import SearchResult
from autopeft.results.status import status_values, status_words
from autopeft.results.wording import reason_words
from autopeft.spec.state import StudyState
from autopeft.spec.study import load_study
from autopeft.spec.trial import Outcome
from tests.results.generated import PROMPTS, Builder, language_model, lora

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Reads a page, and fails on tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self.open and self.open[-1] != "style":
            self.text.append(data)

    @property
    def data(self) -> dict[str, Any]:
        """What the page's script reads."""
        (text,) = (script for attributes, script in self.scripts if attributes.get("type") == "application/json")
        values: dict[str, Any] = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        return values

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.text))


@pytest.fixture(scope="module")
def page(state: StudyState) -> Page:
    return Page(render_report(state))


def test_the_page_loads_nothing(page: Page, state: StudyState) -> None:
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "object", "embed", "img", "base"}
        assert not {"src", "srcset", "href", "action", "background"} & set(attributes), (tag, attributes)
    html = render_report(state)
    style = html.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = (a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_plotly_is_there_once(page: Page) -> None:
    large = [script for _, script in page.scripts if len(script) > 1_000_000]
    assert len(large) == 1


def test_the_front_and_its_intervals_are_on_the_page(page: Page, state: StudyState, result: SearchResult) -> None:
    for record in result.front:
        assert record.design.describe() in page.words
    assert "0.822 ± 0.016 0.791 to 0.852" in page.words
    test = state.tests[18]
    low, high = (test.scores["accuracy"] + z * test.standard_errors["accuracy"] for z in (-1.95996, 1.95996))
    assert f"{low:.3f} to {high:.3f}" in page.words
    for trial in state.chains:
        assert trial.design.describe() in page.words


def test_recommended_designs_come_with_the_code_that_loads_them(page: Page, result: SearchResult) -> None:
    tabs = {attributes["id"]: attributes for _, attributes in page.tags if attributes.get("role") == "tab"}
    cards = page.data["cards"]
    for name, trial in (("best", result.best()), ("knee", result.knee()), ("cheapest", result.best(within="1se"))):
        assert tabs[f"tab-{name}"]["data-card"] == str(trial.number)
        card = cards[str(trial.number)]
        path = (result.state.folder / "adapters" / str(trial.number)).as_posix()
        assert f'autopeft.load(\n    "{path}"\n)' in card["code"]
        assert Path(path).is_dir()
        compile(card["code"], "card", "exec")
    assert set(cards) == {str(trial.number) for trial in result.state.chains}
    assert all(bool(card["code"]) != bool(card["note"]) for card in cards.values())


def test_picks_that_are_one_design_say_so(build: Builder) -> None:
    build.add(lora(1), params=1000, skill=0.7)
    tabs = [a for _, a in Page(render_report(build.state())).tags if a.get("role") == "tab" and "data-card" in a]
    assert [tab["data-card"] for tab in tabs] == ["0", "0", "0"]
    assert "the same design as best and cheapest tied" in (tabs[1]["data-meaning"] or "")


def test_paths_below_the_working_folder_are_relative(build: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    build.add(lora(1), params=1000, skill=0.7)
    monkeypatch.chdir(build.folder.parent)
    assert '"reviews/adapters/0"' in Page(render_report(build.state())).words
    assert str(build.folder) not in Page(render_report(build.state())).words


def test_what_happened_to_every_proposal_is_counted(page: Page) -> None:
    for text in (
        "12 complete",
        "3 stopped",
        "2 infeasible",
        "1 out of memory",
        "7 trainable parameters",
        "2 requirement",
    ):
        assert text in page.words
    assert "12 of 10,400 texts were cut at 128 tokens." in page.words
    assert "torch 2.13.0" in page.words


@pytest.mark.parametrize("changes", [{}, {"timeout": None, "yardstick": None}])
def test_the_study_on_the_page_is_the_study(state: StudyState, tmp_path: Path, changes: dict[str, None]) -> None:
    path, spec = tmp_path / "study.yaml", state.spec.model_copy(update=changes)
    path.write_text(study_yaml(replace(state, spec=spec)))
    assert load_study(path) == spec


def test_texts_of_users_are_escaped(build: Builder) -> None:
    evil = "<script>alert(1)</script>"
    build.add(lora(1), params=1000, skill=0.7)
    build.add(lora(2), params=1000, outcome=Outcome.FAILED, reason=f"ValueError: {evil} </script>")
    state = build.state(notes=(evil,), facts={evil: evil}, n_refused={evil: 1})
    spec = state.spec.model_copy(update={"data": evil, "model": evil})
    html = render_report(replace(state, spec=spec, model=replace(state.model, name=evil)))
    page = Page(html)
    assert len(page.scripts) == 4
    assert not any(script.startswith("alert") for _, script in page.scripts)
    assert evil in page.words
    assert "&lt;script&gt;" in repr(front_chart(state).to_plotly_json())


def test_figures_are_json_that_plotly_reads(page: Page) -> None:
    figures = page.data["figures"]
    assert set(figures) == {"front", "memory", "rungs", "time"}
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert {f"chart-{name}" for name in figures} <= ids


def test_the_front_chart_has_every_trial_once(state: StudyState) -> None:
    traces = {trace.name: trace for trace in front_chart(state).data}
    numbers = [number for trace in traces.values() for number in trace.customdata]
    # The yardstick is on the front, and drawn again on top of it.
    assert sorted(numbers) == sorted([*(trial.number for trial in state.chains), 0])
    cards = [
        (number, card) for trace in traces.values() for number, card in zip(trace.customdata, trace.text, strict=True)
    ]
    assert all(card.startswith(f"<b>{number}: ") for number, card in cards)
    front = traces["front"]
    assert list(front.x) == sorted(front.x)
    assert front.error_y.array[-1] == pytest.approx(1.95996 * state.trials[18].standard_errors["accuracy"], rel=1e-4)


def test_the_other_charts_show_what_was_measured(state: StudyState, build: Builder) -> None:
    points = memory_chart(state).data[1]
    assert len(points.x) == sum(trial.measured.peak_memory is not None for trial in state.chains)
    curves = {trace.name: trace for trace in rung_chart(state).data}
    assert set(curves) == {"front", "complete", "stopped"}
    gaps = sum(value is None for trace in curves.values() for value in trace.x)
    assert gaps == sum(bool(trial.rungs) for trial in state.chains)
    build.add(lora(1), params=1000, outcome=Outcome.INFEASIBLE)
    assert memory_chart(build.state()) is None
    assert rung_chart(build.state()) is None


def test_a_study_without_a_front_or_without_trials_has_a_report(build: Builder) -> None:
    Page(render_report(build.state(n_refused={}, notes=(), facts={})))
    build.add(lora(1), params=1000, outcome=Outcome.FAILED, reason="RuntimeError: no luck")
    words = Page(render_report(build.state(), interrupted=True)).words
    assert "There is no front" in words
    assert "RuntimeError: no luck" in words
    assert "The search was interrupted" in words


def test_the_first_sentence_is_the_answer(page: Page, state: StudyState) -> None:
    test = state.tests[18]
    assert "The best of 7 designs on the front reaches accuracy" in page.words
    assert f"{test.scores['accuracy']:.3f} ± {test.standard_errors['accuracy']:.3f} on test with 299k" in page.words
    assert "it is clearly better than the yardstick" in page.words


def test_time_is_compared_with_predicted_compute(state: StudyState) -> None:
    speed, figure = throughput(state), time_chart(state)
    assert speed is not None
    line, points = figure.data
    assert len(points.x) == speed.n == sum(trial.examples > 0 for trial in state.chains)
    assert line.x[-1] / line.y[-1] == pytest.approx(speed.median / 1e12)
    # Every generated trial is trained at 110 examples a second.
    expected = sorted(trial.estimate.train_flops * 110 / 4000 for trial in state.chains if trial.examples)
    assert speed.low <= speed.median <= speed.high
    assert expected[0] <= speed.median <= expected[-1]
    assert trained_flops(state, state.trials[13]) == state.trials[13].estimate.train_flops / 2


def test_each_time_is_held_against_what_earlier_trials_predicted(state: StudyState, page: Page) -> None:
    speed = throughput(state)
    assert speed is not None
    first, second = sorted((t for t in state.chains if t.examples), key=lambda t: (t.ended_at or 0.0, t.number))[:2]
    seconds_per_flop = first.measured.train_seconds / trained_flops(state, first)
    assert len(speed.errors) == speed.n - 1
    assert speed.errors[0] == pytest.approx(
        second.measured.train_seconds / (seconds_per_flop * trained_flops(state, second)) - 1
    )
    assert speed.describe() in page.words
    assert replace(speed, errors=(0.1, -0.3)).describe().endswith("off by 20 % in the median and -30 % at worst.")
    assert replace(speed, errors=()).describe() == ""


def test_memory_errors_are_those_of_what_was_measured(state: StudyState, build: Builder, page: Page) -> None:
    errors = memory_errors(state)
    assert errors is not None
    ratios = sorted(
        trial.measured.peak_memory / trial.estimate.peak_memory for trial in state.chains if trial.measured.peak_memory
    )
    assert errors.n == len(ratios)
    assert errors.median == pytest.approx(np.median([abs(ratio - 1) for ratio in ratios]))
    assert abs(errors.worst) == pytest.approx(max(ratios[-1] - 1, 1 - ratios[0]))
    assert errors.bound is not None
    assert sum(ratio <= errors.bound for ratio in ratios) >= 0.9 * (len(ratios) + 1)
    assert errors.describe() in page.words
    assert errors.describe() in status_words(state)
    assert status_values(state)["memory_error"]["n"] == errors.n
    assert memory_errors(build.state(trials=())) is None
    few = memory_errors(build.state(trials=state.trials[:3]))
    assert few is not None
    assert few.bound is None
    assert few.describe().startswith("Over 3 trials")


def test_what_only_measurements_put_over_the_budget_says_so(build: Builder) -> None:
    why = "peak_memory 300.0 MiB may reach 620.0 MiB by what trials measured, over the limit of 600.0 MiB"
    trial = build.add(lora(1), params=1000, outcome=Outcome.INFEASIBLE, reason=why)
    trial = replace(trial, excess={"peak_memory": 0.03})
    state = build.state(trials=(trial,), n_refused={"peak_memory": 1, "out_of_memory": 2})
    assert reason_words(trial, state.limits) == why
    words = Page(render_report(state)).words
    assert why in words
    assert "a trial that ran out of memory" in words


def test_rungs_count_who_was_scored_and_who_was_stopped(state: StudyState) -> None:
    first, second = rung_counts(state)
    assert (first.share, second.share) == (0.25, 0.5)
    ends = Counter(trial.outcome for trial in state.chains if trial.rungs)
    assert first.reached == sum(ends.values())
    assert (first.stopped, second.stopped) == (2, 1)
    # In this study the score at a rung is the true skill less a constant, so that the order is nearly kept.
    assert first.rank_correlation is not None
    assert first.rank_correlation > 0.9


@pytest.fixture(scope="module")
def language_state(tmp_path_factory: pytest.TempPathFactory) -> StudyState:
    return language_model(Builder(folder=tmp_path_factory.mktemp("runs") / "stories"))


def test_a_metric_that_is_better_when_lower_reads_right(language_state: StudyState) -> None:
    words = Page(render_report(language_state)).words
    assert "Perplexity: lower is better." in words
    assert "perplexity −" in words
    assert "lower is better) on test" in words
    figure = front_chart(language_state)
    assert figure.layout.yaxis.title.text == "perplexity on validation (lower is better)"
    traces = {trace.name: trace for trace in figure.data}
    assert list(traces["front"].y) == sorted(traces["front"].y, reverse=True)
    # What was never scored lies at the side of the worse scores, beyond the base model.
    assert min(traces["never scored"].y) > max(*traces["stopped"].y, language_state.base.value("perplexity"))
    card = Page(render_report(language_state)).data["cards"]["18"]
    (gain,) = (fact for fact in card["facts"] if fact["label"].startswith("over yardstick"))
    assert gain["value"].startswith("−")
    assert gain["detail"] == "clearly better"


def test_the_base_model_is_a_line_and_no_point(language_state: StudyState) -> None:
    base = language_state.base
    figure = front_chart(language_state)
    assert base.number not in [number for trace in figure.data for number in trace.customdata]
    assert all(x > 0 for trace in figure.data for x in trace.x)
    assert base.value("perplexity") in [shape.y0 for shape in figure.layout.shapes]
    assert any("base model" in annotation.text for annotation in figure.layout.annotations)
    words = Page(render_report(language_state)).words
    assert "no adapter, untrained base model" in words


def test_samples_stand_side_by_side_and_escaped(language_state: StudyState) -> None:
    rows = written(language_state, [language_state.trials[20]])
    assert [(row.prompt, row.reference) for row in rows] == list(PROMPTS)
    for row in rows:
        assert [trial.number for trial, _ in row.outputs] == [22, 0, 20, 18, 3]
    html = render_report(language_state)
    page = Page(html)
    assert len(page.scripts) == 4
    assert "It is a film. <script>alert(1)</script>" in page.words
    assert "Review of <b>a sequel</b>:" in page.words
    assert "More of the same & less of it." in page.words


def test_a_running_study_has_a_report(build: Builder) -> None:
    build.add(lora(1), params=1000, outcome=Outcome.RUNNING, skill=0.6, share=0.5)
    words = Page(render_report(build.state())).words
    assert "1 trial was being trained when this was written" in words
    assert "No design to recommend yet" in words
