"""Does a dashboard page that stays open slow a search down, or does either of them grow?

One real search runs, over designs that cost the same, with its dashboard beside it. In turns of some seconds (open,
closed, closed, open, ...) the page is asked for as an open browser tab asks for it, or left alone. Each trial takes
the time from the end of the one before, and counts for the turn that this lies in as a whole. The machine drifts, and
turns about that are alike in number let that cancel out.

    python studies/benchmarks/soak.py --minutes 60            # 30 open, 30 closed
    python studies/benchmarks/soak.py --minutes 3 --turn 15 --out /tmp/soak.json

It prints the slow-down with an interval, what part of a core the dashboard takes with the page open and without (which
other work on the machine changes less than the trials' seconds), the growth of both processes, and every error that
either of them wrote, and writes that and every trial's seconds by turn to results/soak.json (`--out`). The study is
kept in a temporary folder, or in a database (`--storage`).
"""

import argparse
import importlib.metadata
import itertools
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import scipy.stats
from machine import cpu_name
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results" / "soak.json"
LOOK_SECONDS = 2.0
"""How often it is looked at both processes, and whether the page would ask."""
RELOAD_SECONDS = 300.0
"""How often somebody reloads it."""
SPACE = {
    "blocks": {
        "lora": {
            "rank": 8,
            "roles": [["query", "value"]],
            "layers": "all",
            "learning_rate": {"log": [1e-5, 1e-2]},
        }
    },
    "head": {"learning_rate": {"log": [1e-5, 1e-2]}},
}
"""All its designs cost the same: only learning rates differ."""


@dataclass
class Watched:
    """What a process needed over time: megabytes by second, and seconds of a core."""

    name: str
    process: psutil.Process
    memory: list[tuple[float, float]] = field(default_factory=list)
    cpu: list[tuple[float, float]] = field(default_factory=list)

    def look(self) -> None:
        with suppress(psutil.NoSuchProcess):
            self.memory.append((time.time(), self.process.memory_info().rss / 2**20))
            times = self.process.cpu_times()
            self.cpu.append((time.time(), times.user + times.system))

    def share_of_a_core(self, turns: list[tuple[bool, float, float]]) -> dict[str, float]:
        """Return what part of a core it took in the turns in which the page was open, and in the others."""
        found = {}
        for name, wanted in (("open", True), ("closed", False)):
            seen = [
                [(at, used) for at, used in self.cpu if start <= at <= end]
                for is_open, start, end in turns
                if is_open is wanted
            ]
            used = sum(looks[-1][1] - looks[0][1] for looks in seen if looks)
            found[name] = used / max(1e-9, sum(looks[-1][0] - looks[0][0] for looks in seen if looks))
        return found

    def megabytes(self, at: float) -> float:
        """Return what it had when last looked at before a second."""
        return next(size for second, size in reversed(self.memory) if second <= at)

    def growth(self) -> float:
        """Return megabytes an hour over the second half, in which everything is warm."""
        half = self.memory[len(self.memory) // 2 :]
        if len(half) < 2:
            return 0.0
        hours = [(at - half[0][0]) / 3600 for at, _ in half]
        return statistics.linear_regression(hours, [size for _, size in half]).slope


class Page:
    """An open tab: asks for new trials, and now and then for everything."""

    def __init__(self, address: str, is_running: Callable[[], bool]) -> None:
        self._address = address
        self._is_running = is_running
        self.n_requests = 0
        self.slowest_seconds = 0.0
        self.errors: list[str] = []
        self._n_trials = 0
        self._last_reload = self._last_asked = 0.0

    def look(self) -> None:
        """Ask, where the list of trials would ask by itself: the more there are, the more rarely.

        Source: the page of optuna-dashboard 0.21, which sets 2, 5 and 10 seconds for its list of trials.
        """
        interval = 2.0 if self._n_trials < 100 else 5.0 if self._n_trials < 500 else 10.0
        if time.monotonic() - self._last_asked >= interval:
            self._last_asked = time.monotonic()
            self._ask()

    def _ask(self) -> None:
        reload = time.monotonic() - self._last_reload > RELOAD_SECONDS
        paths = ["dashboard", "api/meta", "api/studies"] if reload else []
        if reload:
            self._last_reload, self._n_trials = time.monotonic(), 0
        for path in (*paths, f"api/studies/0?after={self._n_trials}"):
            start = time.monotonic()
            try:
                with urllib.request.urlopen(self._address + path, timeout=60) as answer:
                    body = answer.read()
                if path.startswith("api/studies/0"):
                    self._n_trials += len(json.loads(body)["trials"])
            except OSError as error:
                if self._is_running():
                    self.errors.append(f"{path}: {error}")
            self.n_requests += 1
            self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - start)


def write_study(folder: Path, minutes: float, storage: str | None) -> Path:
    values = {
        "study_name": "soak",
        "model": str(ROOT / "studies/quickstart/model"),
        "data": str(ROOT / "studies/quickstart/reviews.csv"),
        "columns": {"text": "text", "label": "label", "group": "film"},
        "splits": {"train": 96, "validation": 40, "test": 40},
        "task": "text-classification",
        "space": SPACE,
        "training": {"epochs": 1, "batch_size": 16, "max_length": 64},
        "n_trials": 1_000_000,
        "timeout": minutes * 60,
        "early_stopping": "off",
        "sampler": "random",
        "output_dir": str(folder / "runs"),
        **({"storage": storage} if storage else {}),
    }
    path = folder / "soak.yaml"
    with path.open("w") as file:
        YAML().dump(values, file)
    return path


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def soak(arguments: argparse.Namespace, folder: Path) -> dict[str, object]:
    study, port = write_study(folder, arguments.minutes, arguments.storage), free_port()
    errors = folder / "search.err"
    command = [sys.executable, "-m", "autopeft", "search", str(study), "--dashboard-port", str(port)]
    with errors.open("wb") as log:
        search = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
    runs = folder / "runs" / "soak"
    events = runs / "search.jsonl"
    while not events.is_file() and search.poll() is None:  # it reads the model and the data first
        time.sleep(0.5)
    driver = psutil.Process(search.pid)
    beside = next(p for p in driver.children(recursive=True) if "dashboard" in p.cmdline())
    watched = [Watched("driver", driver), Watched("dashboard", beside)]
    page = Page(f"http://127.0.0.1:{port}/", lambda: is_alive(search))
    turns: list[tuple[bool, float, float]] = []
    for is_open in itertools.cycle((True, False, False, True)):
        start = time.time()
        while time.time() - start < arguments.turn and search.poll() is None:
            if is_open:
                page.look()
            for process in watched:
                process.look()
            time.sleep(LOOK_SECONDS)
        for process in watched:
            process.look()
        turns.append((is_open, start, time.time()))
        if search.poll() is not None:
            break
    said = [line for line in errors.read_text().splitlines() if line and not line.startswith("[")]
    ends = read_ends(runs, arguments.storage)
    return report(ends, turns, watched, page, said, (runs / "dashboard.log").read_text().splitlines())


def is_alive(search: "subprocess.Popen[bytes]") -> bool:
    """Return whether a search goes on: one that is at its end takes the page with it."""
    with suppress(subprocess.TimeoutExpired):
        search.wait(timeout=10.0)
    return search.returncode is None


def read_ends(runs: Path, storage: str | None) -> list[float]:
    """Return when trials ended, the earliest first."""
    from autopeft.study.state import read_state

    trials = read_state(runs, storage=storage).trials
    return sorted(trial.ended_at for trial in trials if trial.outcome == "complete" and trial.ended_at)


def report(
    ends: list[float],
    turns: list[tuple[bool, float, float]],
    watched: list[Watched],
    page: Page,
    search_errors: list[str],
    dashboard_errors: list[str],
) -> dict[str, object]:
    taken = [
        (is_open, [after - before for before, after in itertools.pairwise(ends) if start <= before and after <= end])
        for is_open, start, end in turns
    ]
    return {
        "minutes": (turns[-1][2] - turns[0][1]) / 60,
        "n_trials_open": sum(len(seconds) for is_open, seconds in taken if is_open),
        "n_trials_closed": sum(len(seconds) for is_open, seconds in taken if not is_open),
        **slow_down(taken),
        "n_requests": page.n_requests,
        "slowest_request_seconds": page.slowest_seconds,
        "megabytes": {w.name: {"first": w.memory[0][1], "last": w.memory[-1][1]} for w in watched},
        "share_of_a_core": {w.name: w.share_of_a_core(turns) for w in watched},
        "growth_megabytes_per_hour": {w.name: w.growth() for w in watched},
        "page_errors": page.errors,
        "search_errors": search_errors,
        "dashboard_errors": dashboard_errors,
        "turns": [
            {
                "is_open": is_open,
                "seconds_per_trial": seconds,
                "megabytes": {w.name: round(w.megabytes(end)) for w in watched},
            }
            for (is_open, seconds), (_, _, end) in zip(taken, turns, strict=True)
        ],
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count()},
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "optuna", "optuna-dashboard")},
    }


def slow_down(turns: list[tuple[bool, list[float]]]) -> dict[str, object]:
    """Return by how much trials take longer while the page is open, and Student's 95 % intervals of it.

    Each four turns (open, closed, closed, open) make one ratio, in which a steady drift of the machine cancels.
    Trials of one turn are not independent, so the ratios are what is counted, not the trials. Ratios are of mean
    seconds, and of median ones: a machine that stalls makes a few trials of either kind much longer.
    """
    fours = [turns[i : i + 4] for i in range(0, len(turns) - 3, 4)]
    whole = [four for four in fours if all(seconds for _, seconds in four)]
    if len(whole) < 2:
        return {}
    found: dict[str, object] = {"n_ratios": len(whole)}
    for name, average in (("slow_down", statistics.mean), ("slow_down_of_the_median", statistics.median)):
        ratios = [
            math.log(average(_seconds(four, is_open=True)) / average(_seconds(four, is_open=False))) for four in whole
        ]
        interval = scipy.stats.ttest_1samp(ratios, 0.0).confidence_interval()
        found |= {
            name: math.expm1(statistics.mean(ratios)),
            f"{name}_95": [math.expm1(interval.low), math.expm1(interval.high)],
        }
    return found


def _seconds(turns: list[tuple[bool, list[float]]], *, is_open: bool) -> list[float]:
    return [each for turn_is_open, seconds in turns if turn_is_open is is_open for each in seconds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--turn", type=float, default=20.0, help="seconds that the page is open, or closed, at a time")
    parser.add_argument("--storage", help="a database for the study, such as postgresql://user@host/database")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        found = soak(arguments, Path(folder))
    text = json.dumps(found, indent=2)
    print(json.dumps({name: value for name, value in found.items() if name != "turns"}, indent=2))
    arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
