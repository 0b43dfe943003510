"""Does a dashboard page that stays open slow a search down, or does either of them grow?

One real search runs, over designs that cost the same, with its dashboard beside it. In turns of a few minutes (open,
closed, closed, open, ...) the page is asked for as an open browser tab asks for it, or left alone; each trial counts
for the turn that it lies in as a whole. The machine drifts, and turns about alike in number let that cancel out.

    python studies/benchmarks/soak.py --minutes 60            # 30 open, 30 closed
    python studies/benchmarks/soak.py --minutes 3 --turn 30

It prints the slow-down with an interval, the growth of both processes, and every error that either of them wrote, and
writes the same as JSON (`--out`). The study is kept in a temporary folder, or in a database (`--storage`).
"""

import argparse
import itertools
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
POLL_SECONDS = 2.0
"""How often Optuna Dashboard's page asks for what is new."""
RELOAD_SECONDS = 60.0
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
    """What a process needed over time: megabytes by second."""

    name: str
    process: psutil.Process
    memory: list[tuple[float, float]] = field(default_factory=list)

    def look(self) -> None:
        with suppress(psutil.NoSuchProcess):
            self.memory.append((time.time(), self.process.memory_info().rss / 2**20))

    def growth(self) -> float:
        """Return megabytes an hour over the second half, in which everything is warm."""
        half = self.memory[len(self.memory) // 2 :]
        if len(half) < 2:
            return 0.0
        hours = [(at - half[0][0]) / 3600 for at, _ in half]
        return statistics.linear_regression(hours, [size for _, size in half]).slope


class Page:
    """An open tab: asks for new trials, and now and then for everything."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.n_requests = 0
        self.slowest_seconds = 0.0
        self.errors: list[str] = []
        self._n_trials = 0
        self._last_reload = 0.0

    def ask(self) -> None:
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
        "training": {"epochs": 1, "batch_size": 16, "max_length": 64, "precision": "bf16", "kernel": "eager"},
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
    page = Page(f"http://127.0.0.1:{port}/")
    turns: list[tuple[bool, float, float]] = []
    for is_open in itertools.cycle((True, False, False, True)):
        start = time.time()
        while time.time() - start < arguments.turn and search.poll() is None:
            if is_open:
                page.ask()
            for process in watched:
                process.look()
            time.sleep(POLL_SECONDS)
        turns.append((is_open, start, time.time()))
        if search.poll() is not None:
            break
    said = [line for line in errors.read_text().splitlines() if line and not line.startswith("[")]
    trials = read_trials(runs, arguments.storage)
    return report(trials, turns, watched, page, said, (runs / "dashboard.log").read_text().splitlines())


def read_trials(runs: Path, storage: str | None) -> list[tuple[float, float]]:
    """Return when each trial began and ended."""
    from autopeft.searching.state import read_state

    trials = read_state(runs, storage=storage).trials
    return [(t.started_at, t.ended_at) for t in trials if t.outcome == "complete" and t.started_at and t.ended_at]


def report(
    trials: list[tuple[float, float]],
    turns: list[tuple[bool, float, float]],
    watched: list[Watched],
    page: Page,
    search_errors: list[str],
    dashboard_errors: list[str],
) -> dict[str, object]:
    taken: dict[bool, list[float]] = {True: [], False: []}
    for began, ended in trials:
        for is_open, start, end in turns:
            if start <= began and ended <= end:
                taken[is_open].append(ended - began)
    return {
        "n_trials_open": len(taken[True]),
        "n_trials_closed": len(taken[False]),
        **(slow_down(taken[True], taken[False]) if min(map(len, taken.values())) > 1 else {}),
        "n_requests": page.n_requests,
        "slowest_request_seconds": page.slowest_seconds,
        "megabytes": {w.name: {"first": w.memory[0][1], "last": w.memory[-1][1]} for w in watched},
        "growth_megabytes_per_hour": {w.name: w.growth() for w in watched},
        "page_errors": page.errors,
        "search_errors": search_errors,
        "dashboard_errors": dashboard_errors,
    }


def slow_down(opened: list[float], closed: list[float]) -> dict[str, object]:
    """Return by how much trials take longer while the page is open, from the seconds of each."""
    draw = random.Random(0)
    ratios = sorted(
        statistics.mean(draw.choices(opened, k=len(opened))) / statistics.mean(draw.choices(closed, k=len(closed)))
        for _ in range(2000)
    )
    return {
        "seconds_per_trial_open": statistics.mean(opened),
        "seconds_per_trial_closed": statistics.mean(closed),
        "slow_down": statistics.mean(opened) / statistics.mean(closed) - 1,
        "slow_down_95": [ratios[49] - 1, ratios[1949] - 1],
        "slow_down_of_medians": statistics.median(opened) / statistics.median(closed) - 1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--turn", type=float, default=150.0, help="seconds that the page is open, or closed, at a time")
    parser.add_argument("--storage", help="a database for the study, such as postgresql://user@host/database")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        found = soak(arguments, Path(folder))
    text = json.dumps(found, indent=2)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
