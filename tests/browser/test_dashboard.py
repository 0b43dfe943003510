"""The dashboard as somebody sees it: a finished study, a study that runs, and buttons that change nothing."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

import autopeft
from autopeft.spec.state import StudyState
from autopeft.spec.trial import Outcome
from autopeft.study.state import read_state
from tests.api.conftest import tiny_study
from tests.browser.conftest import Browser
from tests.tasks.generated import reviews, save_tiny_bert

pytestmark = [pytest.mark.slow, pytest.mark.browser]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The arguments of a search that takes seconds, and whose budget refuses some designs."""
    folder = tmp_path_factory.mktemp("browser")
    reviews(300).to_csv(folder / "reviews.csv", index=False)
    return tiny_study(save_tiny_bert(folder), str(folder / "reviews.csv"), folder, trainable_params="10%")


@pytest.fixture(scope="module")
def finished(study: dict[str, Any]) -> StudyState:
    """A real search, done."""
    return autopeft.search(**study).state


@pytest.fixture(scope="module")
def address(finished: StudyState) -> Iterator[str]:
    """Where the finished study is served."""
    command = [sys.executable, "-m", "autopeft", "dashboard", str(finished.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[0]
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0


def test_the_page_opens_at_the_plots_of_the_study(browser: Browser, address: str) -> None:
    browser.open(address)
    for name in ("front", "hypervolume"):
        plot = f"[id='user-defined-plot:{name}']"
        browser.wait_for(lambda plot=plot: browser.find(f"{plot} .point"), f"the points of {name}")
    for text in ("trained in full", "accuracy on validation", "hypervolume (share of the box)"):
        browser.wait_for_text(text)
    assert browser.errors() == []


def test_notes_say_what_a_trial_is_and_mark_the_infeasible(
    browser: Browser, address: str, finished: StudyState
) -> None:
    on_front = next(t for t in finished.trials if t.outcome is Outcome.COMPLETE and not t.baseline)
    infeasible = next(t for t in finished.trials if t.outcome is Outcome.INFEASIBLE and not t.baseline)
    for trial, mark in ((on_front, "complete"), (infeasible, "over the limit of")):
        browser.open(f"{address}dashboard/studies/0/trials?numbers={trial.number}")
        browser.wait_for_text(f"Trial {trial.number} (trial_id={trial.number})")
        for text in (trial.design.describe(), trial.outcome.value, mark, "peak memory", "measured"):
            browser.wait_for_text(text)
    assert browser.errors() == []


def test_nothing_offers_to_change_a_study(browser: Browser, address: str, finished: StudyState) -> None:
    journal = (finished.folder / "study.journal").read_bytes()
    browser.open(f"{address}dashboard/compare-studies")  # from there a link leads to the list of studies
    browser.driver.execute_script(
        "history.pushState({}, '', '/dashboard'); dispatchEvent(new PopStateEvent('popstate'))"
    )
    browser.wait_for_text("0. tiny")
    shown = [button.text for button in browser.find("button, a") if button.is_displayed()]
    assert any("RELOAD" in text.upper() for text in shown)
    assert not any("CREATE" in text.upper() for text in shown)
    (delete,) = browser.find("[aria-label='delete study']")
    assert not delete.is_displayed()
    assert httpx.delete(f"{address}api/studies/0", timeout=60).status_code == 403
    assert (finished.folder / "study.journal").read_bytes() == journal
    assert len(read_state(finished.folder).trials) == len(finished.trials)


def test_a_note_cannot_be_edited(browser: Browser, address: str, finished: StudyState) -> None:
    journal = (finished.folder / "study.journal").read_bytes()
    answer = httpx.put(f"{address}api/studies/0/note", json={"version": 2, "body": "mine"}, timeout=60)
    assert answer.status_code == 403
    assert "cannot change" in answer.json()["reason"]
    browser.open(f"{address}dashboard/studies/0/note")
    browser.wait_for_text("This page shows the study and cannot change it.")
    assert (finished.folder / "study.journal").read_bytes() == journal


def test_a_running_search_shows_up_without_a_reload(browser: Browser, study: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    changes = {"n_trials": 5000, "study_name": "live", "output_dir": str(tmp_path / "runs")}
    file.write_text(json.dumps({**study, **changes}))
    command = [sys.executable, "-u", "-m", "autopeft", "search", str(file), "--dashboard"]
    log = tmp_path / "log"  # a pipe that nobody reads would stop the search in the end
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process:
        while "\n" not in log.read_text():
            assert process.poll() is None
            time.sleep(0.1)
        address = log.read_text().split()[1]
        # Before the search has written its study the page says so, and asks again by itself.
        try:
            browser.open(address)
            browser.wait_for_text("live (id=0)")
            browser.open(f"{address}dashboard/studies/0/trials")
            first = browser.wait_for(lambda: n_trials(browser), "some trials")
            browser.driver.execute_script("window.loadedOnce = true")
            browser.wait_for(lambda: n_trials(browser) > first, f"more than {first} trials")
            assert browser.driver.execute_script("return window.loadedOnce")
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=120) == 130, log.read_text()
        finally:
            process.kill()
    with pytest.raises(httpx.ConnectError):
        httpx.get(address)
    # The search wrote what it found, undisturbed.
    assert len(read_state(tmp_path / "runs" / "live").trials) > first


def n_trials(browser: Browser) -> int:
    """Return how many trials the page says that there are."""
    found = re.search(r"(\d+) Trials", browser.text())
    return int(found[1]) if found else 0
