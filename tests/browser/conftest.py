"""A headless Chromium for tests of pages, driven by selenium."""

import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import pytest
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

T = TypeVar("T")
WAIT_SECONDS = 300
"""Until a page shows what is expected; machines that run tests are shared and slow."""


@dataclass(frozen=True)
class Browser:
    """A browser window with what the tests of pages ask of it; `driver` is selenium's own, for the rest."""

    driver: webdriver.Chrome

    def resize(self, width: int, height: int, *, scale: float = 1.0) -> None:
        """Give the page itself that many CSS pixels, each `scale` pixels of a picture wide."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def open(self, address: str) -> None:
        """Load a page; `file://` addresses are fine."""
        self.driver.get(address)

    def text(self) -> str:
        """Return the text that can be seen on the page."""
        return self.driver.find_element(By.TAG_NAME, "body").text

    def find(self, selector: str) -> list[WebElement]:
        """Return what a CSS selector matches."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def wait_for(self, what: Callable[[], T], expected: str) -> T:
        """Return the first result that is not empty, or fail with what the page shows instead of what is expected.

        A page that replaces an element, or itself, while it is looked at gives one of many errors: look again then.
        """
        end = time.monotonic() + WAIT_SECONDS
        trouble: WebDriverException | None = None
        while time.monotonic() < end:
            try:
                if result := what():
                    return result
                trouble = None
            except WebDriverException as error:
                trouble = error
            time.sleep(0.2)
        shown = f"could not be read: {trouble.msg}" if trouble else f"shows: {self.text()[:2000]}"
        raise AssertionError(f"expected {expected}, but after {WAIT_SECONDS} s the page {shown}") from trouble

    def wait_for_text(self, expected: str) -> None:
        """Wait until the page shows a text."""
        self.wait_for(lambda: expected in self.text(), repr(expected))

    def click(self, selector: str, pattern: str = "") -> None:
        """Click the first that a CSS selector matches, and a regular expression its text, as soon as it is there."""

        def clicked() -> bool:
            for element in self.find(selector):
                if re.search(pattern, element.text):
                    element.click()
                    return True
            return False

        self.wait_for(clicked, f"{selector} {pattern!r}, to click it")

    def errors(self) -> list[str]:
        """Return what the page has logged as errors since this was asked last."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


def start_browser(width: int = 1280, height: int = 800) -> Browser:
    """Start a headless Chromium; nothing is downloaded."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        raise RuntimeError("browser tests need Chromium and its driver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # A page may take as long to load as anything else; without `keep_alive` the time set here is the one that counts.
    browser = Browser(webdriver.Chrome(options=options, service=Service(driver), keep_alive=False))
    browser.driver.set_page_load_timeout(WAIT_SECONDS)
    browser.driver.command_executor.client_config.timeout = 2 * WAIT_SECONDS
    browser.resize(width, height)
    return browser


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """One browser for all tests: starting it takes seconds."""
    browser = start_browser()
    yield browser
    browser.driver.quit()


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """A browser on an empty page of 1280 x 800 pixels, without what an earlier test left in it."""
    chromium.resize(1280, 800)
    chromium.errors()
    yield chromium
    chromium.open("about:blank")
    chromium.driver.execute_cdp_cmd("Storage.clearDataForOrigin", {"origin": "*", "storageTypes": "all"})
