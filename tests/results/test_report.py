import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from autopeft.results.charts import front_chart, memory_chart, rung_chart
from autopeft.results.report import render_report, study_yaml
from autopeft.results.result import SearchResult
from autopeft.spec.state import StudyState
from autopeft.spec.study import load_study
from autopeft.spec.trial import Outcome
from tests.results.generated import Builder, lora

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
    code = page.words
    for trial in (result.best(), result.knee(), result.best(within="1se")):
        path = (result.state.folder / "adapters" / str(trial.number)).as_posix()
        assert f'autopeft.load( "{path}" )' in code
        assert Path(path).is_dir()
    assert "Cheapest within one standard error of the best" in code


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
    assert len(page.scripts) == 3
    assert not any(script.startswith("alert") for _, script in page.scripts)
    assert evil in page.words
    assert "&lt;script&gt;" in repr(front_chart(state).to_plotly_json())


def test_figures_are_json_that_plotly_reads(page: Page) -> None:
    (text,) = (script for attributes, script in page.scripts if attributes.get("type") == "application/json")
    figures = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert set(figures) == {"front", "memory", "rungs"}
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert {f"chart-{name}" for name in figures} <= ids


def test_the_front_chart_has_every_trial_once(state: StudyState) -> None:
    traces = {trace.name: trace for trace in front_chart(state).data}
    cards = [card.split("</b>")[0].removeprefix("<b>") for trace in traces.values() for card in trace.text]
    # The yardstick is on the front, and drawn again on top of it.
    assert sorted(map(int, cards)) == sorted([*(trial.number for trial in state.chains), 0])
    front = traces["front, 95 % interval"]
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
