"""The report in a real browser: it needs no network, and what can be clicked does what it says."""

from collections.abc import Callable
from pathlib import Path

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from autopeft.results.report import render_report
from autopeft.results.result import SearchResult
from autopeft.spec.state import StudyState
from autopeft.spec.trial import Outcome
from tests.browser.conftest import Browser
from tests.results.generated import Builder, fill, language_model, lora, many

pytestmark = [pytest.mark.slow, pytest.mark.browser]
SIZES = [(1280, 800), (1920, 1080), (390, 844)]


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StudyState]:
    """Studies of every kind that a report must show."""

    def build() -> Builder:
        return Builder(folder=tmp_path_factory.mktemp("runs") / "reviews")

    running = build()
    running.add(lora(1), params=157_826, outcome=Outcome.RUNNING, skill=0.7, share=0.5)
    running.add(lora(2), params=167_000, outcome=Outcome.FAILED, share=0.0, reason="RuntimeError: no luck")
    return {
        "finished": fill(build()).state(),
        "language model": language_model(build()),
        "large": many(build(), 300),
        "running": running.state(),
        "no trials": build().state(n_refused={}),
    }


@pytest.fixture
def open_report(browser: Browser, states: dict[str, StudyState], tmp_path: Path) -> Callable[[str], StudyState]:
    """Open the report of a study, and wait until its front is drawn."""

    def open_(name: str) -> StudyState:
        path = tmp_path / "report.html"
        path.write_text(render_report(states[name]), encoding="utf-8")
        browser.open(path.as_uri())
        browser.wait_for(lambda: browser.find("#chart-front .main-svg"), "a drawn chart")
        return states[name]

    return open_


def shown_trials(browser: Browser) -> list[int]:
    return [
        int(row.get_attribute("data-trial") or -1) for row in browser.find("#all-trials tbody tr") if row.is_displayed()
    ]


def heading(browser: Browser, name: str) -> None:
    button = next(b for b in browser.find("#all-trials th button") if b.text == name)
    browser.driver.execute_script("arguments[0].click()", button)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", ["finished", "language model", "large", "running", "no trials"])
def test_every_study_fits_every_screen_without_an_error(
    browser: Browser, open_report: Callable[[str], StudyState], name: str, size: tuple[int, int]
) -> None:
    browser.resize(*size)
    open_report(name)
    width = browser.driver.execute_script("return document.documentElement.scrollWidth")
    assert width <= size[0]
    assert browser.errors() == []


def test_nothing_is_asked_of_a_network(browser: Browser, open_report: Callable[[str], StudyState]) -> None:
    open_report("finished")
    asked = browser.driver.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in asked if not name.startswith(("data:", "blob:"))] == []
    blocked = browser.driver.execute_async_script(
        "const done = arguments[0]; fetch('http://127.0.0.1:9/').then(() => done(false), () => done(true))"
    )
    assert blocked
    assert any("Content Security Policy" in error for error in browser.errors())


def test_the_first_screen_holds_front_recommendation_and_code(
    browser: Browser, open_report: Callable[[str], StudyState]
) -> None:
    open_report("finished")
    for selector in ("h1", ".answer", "#chart-front", ".tabs", "#card .words", "#card pre", "#card .copy"):
        (element,) = browser.find(selector)
        bottom = element.rect["y"] + element.rect["height"]
        assert element.is_displayed()
        assert bottom <= 800, selector


def test_tabs_switch_between_the_recommended_designs(
    browser: Browser, open_report: Callable[[str], StudyState]
) -> None:
    result = SearchResult(open_report("finished"))
    picks = {"best": result.best(), "knee": result.knee(), "cheapest": result.best(within="1se")}
    for name, trial in picks.items():
        (tab,) = browser.find(f"#tab-{name}")
        tab.click()
        card = browser.find("#card")[0].text
        assert tab.get_attribute("aria-selected") == "true"
        assert trial.design.describe() in card
        assert f"adapters/{trial.number}" in card
        assert "mergeable" in card or "PEFT" in card or "autopeft only" in card
    # The same with the keyboard: the arrow goes on from the last tab to the first.
    ActionChains(browser.driver).send_keys(Keys.ARROW_RIGHT).perform()
    assert browser.driver.switch_to.active_element.get_attribute("id") == "tab-best"
    assert f"adapters/{picks['best'].number}" in browser.find("#card")[0].text


def test_a_click_on_a_point_shows_its_design(browser: Browser, open_report: Callable[[str], StudyState]) -> None:
    state = open_report("finished")
    point = browser.driver.execute_script(
        """const chart = document.getElementById("chart-front"), box = chart.getBoundingClientRect();
        const trace = chart.data.find(t => t.name === "trained in full"), layout = chart._fullLayout;
        const x = box.left + layout._size.l + layout.xaxis.c2p(trace.x[0]);
        const y = box.top + layout._size.t + layout.yaxis.c2p(trace.y[0]);
        return [trace.customdata[0], x, y]"""
    )
    number, x, y = point
    mouse = ActionChains(browser.driver)
    mouse.w3c_actions.pointer_action.move_to_location(int(x), int(y))
    mouse.pause(0.5).perform()
    browser.wait_for(
        lambda: any(f"{number}:" in element.text for element in browser.find("#chart-front .hoverlayer")),
        f"trial {number} hovered",
    )
    mouse.w3c_actions.pointer_action.click()
    mouse.perform()
    browser.wait_for(lambda: browser.find("#tab-selected[aria-selected=true]"), "the clicked trial on the card")
    assert state.trials[number].design.describe() in browser.find("#card")[0].text


def test_a_trial_in_the_table_goes_to_the_card(browser: Browser, open_report: Callable[[str], StudyState]) -> None:
    open_report("finished")
    (button,) = browser.find('#all-trials button[data-show="16"]')
    browser.driver.execute_script("arguments[0].click()", button)
    card = browser.find("#card")[0].text
    assert "FloatingPointError: the loss is not finite" in card
    assert not browser.find("#card pre")[0].is_displayed()


def test_the_filter_narrows_by_words_outcome_kind_and_front(
    browser: Browser, open_report: Callable[[str], StudyState]
) -> None:
    state = open_report("finished")
    result = SearchResult(state)
    everything = {trial.number for trial in state.chains}
    (find,), (count,) = browser.find("#find"), browser.find("#shown")
    assert set(shown_trials(browser)) == everything
    find.send_keys("not FINITE")
    assert shown_trials(browser) == [16]
    assert count.text == f"1 of {len(everything)}"
    find.clear()
    find.send_keys(Keys.SPACE, Keys.BACKSPACE)
    Select(browser.find("#outcome")[0]).select_by_value("stopped")
    assert set(shown_trials(browser)) == {t.number for t in state.chains if t.outcome is Outcome.STOPPED}
    Select(browser.find("#outcome")[0]).select_by_value("")
    for kind in ("lora", "adapter"):
        box = browser.find(f"input[value={kind}]")[0]
        box.send_keys(Keys.SPACE)
    assert set(shown_trials(browser)) == {t.number for t in state.chains if {"lora", "adapter"} <= set(t.design.kinds)}
    for kind in ("lora", "adapter"):
        browser.find(f"input[value={kind}]")[0].send_keys(Keys.SPACE)
    browser.find("#only-front")[0].send_keys(Keys.SPACE)
    assert set(shown_trials(browser)) == {trial.number for trial in result.front}


@pytest.mark.parametrize("name", ["finished", "language model"])
def test_a_heading_sorts_and_sorts_the_other_way(
    browser: Browser, open_report: Callable[[str], StudyState], name: str
) -> None:
    state = open_report(name)
    by_number = {trial.number: trial for trial in state.chains}
    heading(browser, "Trainable")
    costs = [by_number[number].estimate.trainable_params for number in shown_trials(browser)]
    assert costs == sorted(costs)
    heading(browser, "Trainable")
    costs = [by_number[number].estimate.trainable_params for number in shown_trials(browser)]
    assert costs == sorted(costs, reverse=True)
    heading(browser, "Validation")
    order = [by_number[number].scores.get(state.metric) for number in shown_trials(browser)]
    scores = [score for score in order if score is not None]
    # The best come first at the first click, whichever way is better; those without a score last.
    assert scores == sorted(scores, key=state.quality.loss)
    assert order == scores + [None] * (len(order) - len(scores))
    assert browser.find("#all-trials th[aria-sort]")[0].text == "Validation"


def test_copy_takes_the_code(browser: Browser, open_report: Callable[[str], StudyState]) -> None:
    open_report("finished")
    code = browser.find("#card pre")[0].text
    (button,) = browser.find("#card .copy")
    # The word stands for a moment only: the page itself writes down what the button has said.
    browser.driver.execute_script(
        """const [button] = arguments; window.said = [];
        new MutationObserver(() => window.said.push(button.textContent)).observe(button, { childList: true })""",
        button,
    )
    button.click()
    browser.wait_for(
        lambda: "Copied" in browser.driver.execute_script("return window.said"), "a word that it was copied"
    )
    find = browser.find("#find")[0]
    find.send_keys(Keys.CONTROL, "v")
    # A field of one line takes the line ends out.
    assert "".join((find.get_attribute("value") or "").split()) == "".join(code.split())
    assert "autopeft.load(" in code


def test_colours_follow_the_system_until_the_reader_chooses(
    browser: Browser, open_report: Callable[[str], StudyState]
) -> None:
    def background() -> str:
        return str(browser.driver.execute_script("return getComputedStyle(document.body).backgroundColor"))

    def front_color() -> str:
        script = 'return document.getElementById("chart-front").data.find(t => t.name === "front").marker.color'
        return str(browser.driver.execute_script(script))

    def system(scheme: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    try:
        system("light")
        open_report("finished")
        light, light_front = background(), front_color()
        system("dark")
        browser.wait_for(lambda: background() != light and front_color() != light_front, "the dark form")
        dark = background()
        (toggle,) = browser.find("#theme")
        assert toggle.text == "Light"
        toggle.click()
        assert background() == light
        browser.driver.refresh()
        browser.wait_for(lambda: browser.find("#chart-front .main-svg"), "a drawn chart")
        assert background() == light, "the choice is remembered, against the system"
        browser.find("#theme")[0].click()
        system("light")
        assert background() == dark
    finally:
        browser.driver.execute_script("localStorage.clear()")
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_texts_of_models_and_people_stay_texts(browser: Browser, open_report: Callable[[str], StudyState]) -> None:
    open_report("language model")
    samples = browser.find("#samples")[0].text
    assert "It is a film. <script>alert(1)</script>" in samples
    assert "Review of <b>a sequel</b>:" in samples
    assert not browser.find("#samples b, #samples script")


def test_charts_are_where_their_words_are(browser: Browser, open_report: Callable[[str], StudyState]) -> None:
    open_report("language model")
    for name in ("front", "rungs", "memory", "time"):
        chart = browser.driver.find_element(By.ID, f"chart-{name}")
        assert chart.find_elements(By.CSS_SELECTOR, ".scatterlayer .trace"), name
    assert "base model, untrained: 65.50" in browser.find("#chart-front")[0].text
