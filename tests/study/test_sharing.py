"""Several drivers of one study in PostgreSQL: real processes, real kills, a server that goes away."""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from wsgiref.types import WSGIApplication

import pytest

from autopeft.errors import StorageError
from autopeft.results import dashboard
from autopeft.results.notes import trial_note
from autopeft.spec.state import StudyState
from autopeft.spec.study import make_study
from autopeft.spec.training import Training
from autopeft.spec.trial import Outcome, TrialRecord
from autopeft.study import database as databases
from autopeft.study.state import read_state
from autopeft.study.store import StudyStore
from autopeft.study.test_scores import read_scores
from tests.bench import FULL
from tests.conftest import make_summary, started
from tests.results.test_dashboard import ask, describe
from tests.study.driver import OBJECTIVES_HERE, drive
from tests.study.server import Server

pytestmark = pytest.mark.slow


class Driver:
    """A driver in a process, and what it writes."""

    def __init__(
        self, url: str, folder: Path, *, n_trials: int, seconds: float, n_workers: int = 1, stops_after: int = -1
    ) -> None:
        options = [str(option) for option in (n_trials, seconds, n_workers, stops_after)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.study.driver", url, str(folder), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self.errors: list[str] = []
        pairs = ((self.process.stdout, self.lines), (self.process.stderr, self.errors))
        self._threads = [
            threading.Thread(target=lambda s, t: t.extend(iter(s.readline, "")), args=p, daemon=True) for p in pairs
        ]
        for thread in self._threads:
            thread.start()

    def n_trained(self) -> int:
        return sum(line.startswith("trained") for line in self.lines)

    def end(self, seconds: float = 120) -> str:
        """Wait for its end, which must be a good one; return what it said of trouble."""
        code = self.process.wait(seconds)
        errors = self.stop_reading()
        assert code == 0, errors
        return errors

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.stop_reading()

    def stop_reading(self) -> str:
        for thread in self._threads:
            thread.join()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        return "".join(self.errors)


Begin = Callable[..., list[Driver]]


@pytest.fixture
def begin(database: str, tmp_path: Path) -> Iterator[Begin]:
    """Start drivers of one study, each in the folder of its name, and let them begin together."""
    begun: list[Driver] = []

    def begin_(**options: dict[str, Any]) -> list[Driver]:
        drivers = [Driver(database, tmp_path / name, **option) for name, option in options.items()]
        begun.extend(drivers)
        wait_for(lambda: all("begins\n" in driver.lines for driver in drivers))
        for driver in drivers:
            assert driver.process.stdin is not None
            driver.process.stdin.write("go\n")
            driver.process.stdin.flush()
        return drivers

    yield begin_
    for driver in begun:
        if driver.process.poll() is None:
            driver.kill()


def wait_for(what: Callable[[], object], seconds: float = 180.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def read(url: str, tmp_path: Path) -> tuple[StudyStore, tuple[TrialRecord, ...]]:
    store = StudyStore.read(tmp_path / "none", name="shared", objectives=OBJECTIVES_HERE, storage=url)
    return store, store.records()


def check(records: tuple[TrialRecord, ...], *, n_trials: int) -> None:
    """Check what must hold of any finished study, however many drivers it had and whatever befell them."""
    assert [r.number for r in records] == list(range(len(records)))
    assert not [r for r in records if r.outcome is Outcome.RUNNING]
    assert len(started(records)) == n_trials
    designs = Counter((r.design.key, tuple(sorted(r.learning_rates.items()))) for r in started(records))
    assert set(designs.values()) == {1}, "a design was proposed twice"
    continued = Counter(r.continues for r in records if r.continues is not None)
    assert set(continued.values()) <= {1}, "two trials went on from one"
    assert sum(r.baseline == "yardstick" and r.continues is None for r in records) == 1
    assert all(r.examples == FULL for r in records if r.outcome is Outcome.COMPLETE)
    last = [r for r in records if r.number not in continued]
    assert {r.outcome for r in last} <= {Outcome.COMPLETE, Outcome.STOPPED, Outcome.INFEASIBLE}, "one was left behind"


class Page:
    """The dashboard of a study in a database, and what it has shown."""

    def __init__(self, url: str, folder: Path, page_of: Callable[[Path], WSGIApplication]) -> None:
        values = {"model": "bert", "data": "reviews.csv", "study_name": "shared", "storage": url}
        self.folder = folder
        folder.mkdir()
        describe(
            StudyState(
                folder=folder,
                spec=make_study({**values, "objectives": [objective.name for objective in OBJECTIVES_HERE]}),
                model=make_summary(),
                training=Training(),
                metric="accuracy",
                limits={"trainable_params": 60_000},
                n_full_examples=FULL,
                trials=(),
            )
        )
        self.app = page_of(folder)
        self.n_shown: list[int] = []
        self.notes: list[str] = []

    def look(self) -> None:
        status, answer = ask(self.app, "/api/studies")
        assert status == 200, answer
        status, page = ask(self.app, f"/api/studies/{answer['study_summaries'][0]['study_id']}")
        assert status == 200, page
        assert [trial["number"] for trial in page["trials"]] == list(range(len(page["trials"])))
        self.n_shown.append(len(page["trials"]))
        self.notes = [trial["note"]["body"] for trial in page["trials"]]

    def shows(self, n_trials: int) -> bool:
        """Look once more, and tell whether it shows so many: Optuna Dashboard keeps trials for two seconds."""
        self.look()
        return self.n_shown[-1] == n_trials

    def check(self, records: tuple[TrialRecord, ...]) -> None:
        """Check that it has grown with the study, and shows all that this has come to."""
        assert self.n_shown == sorted(self.n_shown)
        assert len(set(self.n_shown)) > 3, "it must have looked while the study grew"
        state = read_state(self.folder)
        assert state.trials == records
        notes = [trial_note(state, record) for record in records]
        assert [beginning(note) for note in self.notes] == [beginning(note) for note in notes]


def beginning(note: str) -> list[str]:
    """Return what a note says of the design, and of how it ended."""
    return note.split("\n\n")[:2]


def test_two_drivers_share_a_study(
    begin: Begin,
    page_of: Callable[[Path], WSGIApplication],
    database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two processes write it, while this one shows it."""
    monkeypatch.setattr(dashboard, "MAX_SHARE_OF_TIME", math.inf)
    page = Page(database, tmp_path / "page", page_of)
    drivers = begin(a={"n_trials": 24, "seconds": 0.5}, b={"n_trials": 24, "seconds": 0.5})
    wait_for(lambda: any(driver.n_trained() for driver in drivers))
    wait_for(lambda: page.look() or all(driver.process.poll() is not None for driver in drivers))
    for driver in drivers:
        assert driver.end() == ""
    store, records = read(database, tmp_path)
    wait_for(lambda: page.shows(len(records)), seconds=20)
    page.check(records)
    check(records, n_trials=24)
    by_driver = Counter(record.driver for record in started(records))
    assert len(by_driver) == 2
    assert min(by_driver.values()) >= 4, f"both must do their share, but: {by_driver}"
    assert min(driver.n_trained() for driver in drivers) >= 8
    # Rungs are decided on the union: only what is scored at the same moment may miss each other.
    for rung in (0, 1):
        scored = [r for r in records if len(r.rungs) > rung and not r.baseline]
        n_known = max(r.rungs[rung].verdict.n_known for r in scored if r.rungs[rung].verdict is not None)
        assert n_known >= len({r.design.key for r in scored}) - 1
    tested = Counter(line.split()[1] for driver in drivers for line in driver.lines if line.startswith("tested"))
    assert set(tested.values()) == {1}, "no design is scored on the test split twice"
    assert set(map(int, tested)) == set(read_scores(store))
    store.close()


def test_what_a_killed_driver_leaves_another_takes_over(begin: Begin, database: str, tmp_path: Path) -> None:
    killed, other = begin(
        a={"n_trials": 20, "seconds": 0.4, "n_workers": 3},
        b={"n_trials": 20, "seconds": 0.2},
    )
    wait_for(lambda: killed.n_trained() >= 6 and other.n_trained() >= 3)
    store, before = read(database, tmp_path)
    complete = {r.number: r for r in before if r.outcome is Outcome.COMPLETE}
    killed.kill()
    assert other.end() == ""
    records = store.records()
    store.close()
    check(records, n_trials=20)
    assert {n: r for n, r in enumerate(records) if n in complete} == complete
    left = [r for r in records if "is gone" in r.reason]
    assert left
    assert all(r.outcome is Outcome.INTERRUPTED for r in left)
    assert {r.driver for r in left} < {r.driver for r in records}


def test_a_killed_driver_resumes_from_its_own_checkpoints(begin: Begin, database: str, tmp_path: Path) -> None:
    (killed,) = begin(a={"n_trials": 6, "seconds": 1.0, "n_workers": 2})
    wait_for(killed.n_trained)
    store, _ = read(database, tmp_path)
    wait_for(lambda: any(r.outcome is Outcome.RUNNING and r.examples for r in store.records()))
    killed.kill()
    (again,) = begin(a={"n_trials": 6, "seconds": 0.05})
    assert again.end() == ""
    records = store.records()
    store.close()
    check(records, n_trials=6)
    assert any("the search was killed" in r.reason for r in records)
    assert any(line.split()[2] != "0" for line in again.lines if line.startswith("trained")), "one went on"


def test_a_server_that_restarts_is_waited_for(begin: Begin, database: str, server: Server, tmp_path: Path) -> None:
    options = {"n_trials": 20, "seconds": 0.3, "n_workers": 2}
    drivers = begin(a=options, b=options)
    wait_for(lambda: all(driver.n_trained() for driver in drivers))
    for n_trained in (4, 16):
        wait_for(lambda n=n_trained: sum(driver.n_trained() for driver in drivers) >= n)
        server.stop("immediate")
        time.sleep(1.0)
        server.start()
    said = [driver.end() for driver in drivers]
    store, records = read(database, tmp_path)
    store.close()
    check(records, n_trials=20)
    assert not any("is gone" in r.reason for r in records), "while the server is away nobody is taken for dead"
    assert any("asked again" in text and "answers again" in text for text in said)


def test_a_server_that_stays_away_ends_the_search(
    database: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(databases, "PATIENCE_SECONDS", 1.0)
    never = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        search = pool.submit(drive, database, tmp_path / "a", 12, 0.5, 2, never)
        wait_for(lambda: search.done() or len(list((tmp_path / "a").glob("checkpoints/*"))) >= 4)
        server.stop("immediate")
        try:
            with pytest.raises(StorageError, match=r"the database of a study must answer, but .*is the server there"):
                search.result(120)
        finally:
            server.start()
    store, before = read(database, tmp_path)
    complete = [record for record in before if record.outcome is Outcome.COMPLETE]
    drive(database, tmp_path / "a", 12, 0.02, 2, never)
    records = store.records()
    store.close()
    check(records, n_trials=12)
    assert [record for record in records if record in complete] == complete


def test_a_driver_that_was_taken_for_dead_gives_its_trial_up(begin: Begin, database: str, tmp_path: Path) -> None:
    """A driver stops in its tracks and its sign of life is made an old one; then it goes on."""
    (asleep,) = begin(a={"n_trials": 8, "seconds": 0.3, "stops_after": 3})
    wait_for(lambda: Path(f"/proc/{asleep.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    import psycopg

    with psycopg.connect(database, autocommit=True) as connection:
        store, _ = read(database, tmp_path)
        name = next(r.driver for r in store.records())
        connection.execute("UPDATE study_user_attributes SET value_json = %s WHERE key = %s", (_OLD, f"driver.{name}"))
    (other,) = begin(b={"n_trials": 8, "seconds": 0.05})
    assert other.end() == ""
    os.kill(asleep.process.pid, signal.SIGCONT)
    assert asleep.end() == ""
    records = store.records()
    store.close()
    check(records, n_trials=8)
    assert any(r.driver == name and r.outcome is Outcome.INTERRUPTED for r in records)


_OLD = '{"host": "elsewhere", "pid": 1, "machine": "elsewhere", "started": 1, "seen_at": 0.0, "ended": false}'
