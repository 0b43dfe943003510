"""Take the README's pictures: `make pictures`, or python -m tests.browser.screenshots STUDY_FOLDER TARGET_FOLDER."""

import io
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

from tests.browser.conftest import Browser, start_browser

WIDTH, HEIGHT = 1280, 800
DASHBOARD_SCALE = 0.7
"""The dashboard's cards are large: at this scale two rows of them fit."""
IMPORTANCE, FRONT, HYPERVOLUME = (
    "graph-hyperparameter-importances",
    "user-defined-plot:front",
    "user-defined-plot:hypervolume",
)


def take(browser: Browser, target: Path) -> None:
    """Write what the window shows, with as many colours as a small file has room for."""
    picture = Image.open(io.BytesIO(browser.driver.get_screenshot_as_png())).convert("RGB")
    assert picture.size == (WIDTH, HEIGHT)
    picture.quantize(256).save(target, optimize=True)
    print(f"{target}: {target.stat().st_size / 1000:.0f} kB")


def dashboard(browser: Browser, address: str) -> None:
    """Show the study's page where its plots are: importances and times, front and hypervolume."""
    browser.resize(round(WIDTH / DASHBOARD_SCALE), round(HEIGHT / DASHBOARD_SCALE), scale=DASHBOARD_SCALE)
    browser.open(f"{address}dashboard/studies/0")
    for name in (FRONT, HYPERVOLUME):
        browser.wait_for(lambda name=name: browser.find(f"[id='{name}'] .point"), name)
    browser.wait_for(lambda: browser.find(f"#{IMPORTANCE} .point"), "importances")
    # The card around the plot begins above it, and the page's head covers what scrolls under it.
    browser.driver.execute_script(
        "window.scrollTo(0, document.getElementById(arguments[0]).getBoundingClientRect().top + scrollY - 126)",
        IMPORTANCE,
    )


def main() -> None:
    """Take both pictures of a study."""
    study, target = Path(sys.argv[1]), Path(sys.argv[2])
    browser = start_browser()
    command = [sys.executable, "-m", "autopeft", "dashboard", str(study)]
    # The page puts plots in the order of a Python set of their names: with this seed the front comes first.
    environment = {**os.environ, "PYTHONHASHSEED": "6"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        dashboard(browser, process.stdout.readline().split()[0])
        take(browser, target / "dashboard.png")
        process.terminate()
    browser.resize(WIDTH, HEIGHT)
    browser.open((study / "report.html").resolve().as_uri())
    browser.wait_for(lambda: browser.find("svg .point, svg .points"), "the report's plots")
    take(browser, target / "report.png")
    browser.driver.quit()


if __name__ == "__main__":
    main()
