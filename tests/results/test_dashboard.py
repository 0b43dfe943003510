"""The dashboard: what it adds to Optuna's page, that it changes nothing, and how it starts and ends."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from wsgiref.types import WSGIApplication
from wsgiref.util import setup_testing_defaults

import optuna
import pytest
from click.testing import CliRunner
from optuna.distributions import IntDistribution

from autopeft.cli import main
from autopeft.errors import ResultError
from autopeft.results import dashboard
from autopeft.results.dashboard import StudyApp, StudyView, additions
from autopeft.results.dashboard_server import Server, listen, read_only, url
from autopeft.spec.location import working_folder
from autopeft.spec.state import StudyState
from autopeft.spec.study import StudySpec
from autopeft.spec.trial import Outcome
from autopeft.study.front import compared
from autopeft.study.hypervolume import FACT
from autopeft.study.remote_copy import RemoteCopy
from autopeft.study.state import read_state
from autopeft.study.store import StudyStore
from tests.results.generated import HEAD, Builder, fill

BOX = {
    "ideal": {"accuracy": 1.0, "trainable_params": float(HEAD)},
    "reference": {"accuracy": 0.0, "trainable_params": 450_000.0},
}


def describe(state: StudyState, spec: StudySpec | None = None) -> None:
    """Write the study file of a state as a search leaves it on disk."""
    values = {
        "schema_version": 1,
        "spec": (spec or state.spec).to_dict(),
        "model": state.model.to_dict(),
        "training": state.training.model_dump(mode="json"),
        "metric": state.metric,
        "limits": dict(state.limits),
        "n_full_examples": state.n_full_examples,
        "notes": list(state.notes),
        "facts": {**state.facts, FACT: BOX},
    }
    (state.folder / "study.json").write_text(json.dumps(values))


def write_study(state: StudyState) -> Path:
    """Write a state as a search leaves it on disk."""
    describe(state)
    store = StudyStore.create(state.folder / "study.journal", name=state.spec.study_name, objectives=state.objectives)
    for record in state.trials:
        store.add(record, {"lora.rank": record.number % 9}, {"lora.rank": IntDistribution(0, 8)})
    return state.folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_study(fill(Builder(folder=tmp_path / "reviews")).state())


@pytest.fixture
def app(folder: Path) -> WSGIApplication:
    return read_only(StudyApp(folder))


def ask(app: WSGIApplication, path: str, method: str = "GET", host: str = "localhost:8080") -> tuple[int, Any]:
    """Make a request and return its status and its body, decoded where it is JSON."""
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    environ |= {"REQUEST_METHOD": method, "PATH_INFO": path, "HTTP_HOST": host, "HTTP_ACCEPT_ENCODING": ""}
    answer: dict[str, Any] = {}

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], None]:
        answer.update(status=int(status.split()[0]), headers=dict(headers))
        return lambda _: None

    answered = app(environ, start_response)
    body = b"".join(answered)
    if hasattr(answered, "close"):
        answered.close()
    is_json = answer["headers"].get("Content-Type") == "application/json" and body
    return answer["status"], json.loads(body) if is_json else body


def bring_to(location: str, folder: Path) -> None:
    """Bring a study to an address, as a search elsewhere does."""
    store = RemoteCopy(location)
    known = store.journal(store.names()) or b""
    for path in folder.rglob("*"):
        if path.name == "study.journal":
            store.append_journal(len(known), path.read_bytes()[len(known) :])
        elif path.is_file():
            store.put(path.relative_to(folder).as_posix(), path.read_bytes())


def test_a_study_at_an_address_is_followed_and_its_adapters_come_when_they_are_asked_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(dashboard, "FETCH_SECONDS", 0.0)
    location = "memory://dashboard/reviews"
    state = read_state(folder)
    best = max(compared(state.trials, state.objectives), key=lambda trial: trial.scores["accuracy"]).number
    adapter = folder / "adapters" / str(best)
    (adapter / "adapter.safetensors").write_bytes(b"weights")
    app = read_only(StudyApp(location))
    assert ask(app, "/api/studies")[0] == 503, "nothing is there yet"
    with pytest.raises(ResultError, match="memory://dashboard/reviews"):
        StudyApp(location).check()
    bring_to(location, folder)
    StudyApp(location).check()
    _, listed = ask(app, "/api/studies")
    study = listed["study_summaries"][0]["study_id"]
    _, shown = ask(app, f"/api/studies/{study}")
    assert len(shown["trials"]) == len(state.trials)
    assert "Front" in json.dumps(shown)
    artifacts = shown["trials"][best]["artifacts"]
    assert {artifact["filename"] for artifact in artifacts} == {path.name for path in adapter.iterdir()}
    here = working_folder(location)
    assert not list(here.rglob("*.safetensors"))
    status, content = ask(app, f"/artifacts/{study}/{best}/{artifacts[0]['artifact_id']}")
    assert (status, content) == (200, b"weights")

    store = StudyStore.create(folder / "study.journal", name=state.spec.study_name, objectives=state.objectives)
    store.add(replace(state.trials[0], baseline="", number=len(state.trials)), {}, {})
    bring_to(location, folder)
    for _ in range(100):  # Optuna Dashboard looks again after two seconds
        _, shown = ask(app, f"/api/studies/{study}")
        if len(shown["trials"]) > len(state.trials):
            break
        time.sleep(0.1)
    assert len(shown["trials"]) == len(state.trials) + 1


def contents(folder: Path) -> dict[str, Any]:
    """Return all that a write would change: every file's bytes, and when each folder last got or lost one."""
    return {
        str(path): path.read_bytes() if path.is_file() else path.stat().st_mtime_ns
        for path in [folder, *folder.rglob("*")]
    }


def test_notes_and_plots_are_what_the_library_itself_would_save(app: WSGIApplication, folder: Path) -> None:
    """Oracle: the same texts saved through optuna_dashboard's own functions, served by its own application."""
    import plotly.graph_objects as go
    from optuna_dashboard import save_note, save_plotly_graph_object, wsgi

    state = read_state(folder)
    saved = optuna.create_study(directions=["maximize", "minimize"])
    added = additions(state)
    save_note(saved, added["dashboard:note_str:0"])
    for name in ("front", "hypervolume"):
        figure = go.Figure(json.loads(added[f"dashboard:plot_data:{name}:0"]))
        save_plotly_graph_object(saved, figure, graph_object_id=name)
    _, theirs = ask(wsgi(saved._storage), "/api/studies/0")
    _, ours = ask(app, "/api/studies/0")
    assert ours["note"]["body"] == theirs["note"]["body"] != ""
    plots = [{p["id"]: json.loads(p["graph_object"]) for p in page["plotly_graph_objects"]} for page in (ours, theirs)]
    assert plots[0].keys() == plots[1].keys() == {"front", "hypervolume"}
    assert plots[0] == plots[1]


def test_every_trial_has_a_note_of_its_own(app: WSGIApplication, folder: Path) -> None:
    status, page = ask(app, "/api/studies/0")
    assert status == 200
    assert page["objective_names"] == ["accuracy", "trainable_params"]
    trials = read_state(folder).trials
    assert [trial["number"] for trial in page["trials"]] == [trial.number for trial in trials]
    for trial, shown in zip(trials, page["trials"], strict=True):
        note = shown["note"]["body"]
        assert trial.design.describe() in note
        assert f"**{trial.outcome.value.replace('_', ' ')}**" in note
        for name in ("trainable parameters", "peak memory", "measured"):
            assert name in note


def test_an_infeasible_trial_is_marked_and_says_why(app: WSGIApplication, folder: Path) -> None:
    _, page = ask(app, "/api/studies/0")
    infeasible = {trial.number for trial in read_state(folder).trials if trial.outcome is Outcome.INFEASIBLE}
    assert infeasible
    for trial in page["trials"]:
        # Trials that ran may be over the budget too: the baselines.
        if trial["number"] in infeasible:
            assert any(value > 0 for value in trial["constraints"])
            assert "over the limit" in trial["note"]["body"]


def test_odd_texts_stay_text(tmp_path: Path) -> None:
    build = Builder(folder=tmp_path)
    reason = "ValueError: | a `b` <script>alert(1)</script>\nsecond line"
    build.add(params=200_000, outcome=Outcome.FAILED, reason=reason)
    note = additions(build.state())["dashboard:0:note_str:0"]
    assert "`ValueError: | a 'b' <script>alert(1)</script> second line`" in note


def test_a_study_without_trials_is_shown(tmp_path: Path) -> None:
    app = read_only(StudyApp(write_study(Builder(folder=tmp_path / "empty").state())))
    status, page = ask(app, "/api/studies/0")
    assert status == 200
    assert "No trial yet" in page["note"]["body"]
    assert [plot["id"] for plot in page["plotly_graph_objects"]] == ["front"]


def routes() -> list[tuple[str, str]]:
    """Return method and path of everything that Optuna Dashboard answers, with the study and a trial filled in."""
    from optuna_dashboard import wsgi

    fills = {
        "<study_id:int>": "0",
        "<trial_id:int>": "1",
        "<plot_type>": "contour",
        "<filename:path>": "bundle.js",
        "<:re:(/.*)?>": "",
        "<history_id>": "x",
        "<artifact_id:re:[0-9a-fA-F-]+>": "ab",
    }
    found = []
    for route in wsgi(optuna.storages.InMemoryStorage()).routes:
        path = route.rule
        for placeholder, value in fills.items():
            path = path.replace(placeholder, value)
        assert "<" not in path, f"a new kind of route: {path}"
        found.append((route.method, path))
    return found


def test_nothing_that_the_page_can_ask_for_changes_the_study(app: WSGIApplication, folder: Path) -> None:
    before = contents(folder)
    asked = routes()
    assert {"POST", "PUT", "DELETE", "GET"} <= {method for method, _ in asked}
    for method, path in asked:
        status, answer = ask(app, path, method)
        if method == "GET":
            assert status in (200, 302, 400, 404), (path, answer)
        else:
            assert (status, "cannot change" in answer["reason"]) == (403, True), (method, path)
    assert contents(folder) == before
    assert ask(app, "/api/studies")[1]["study_summaries"][0]["study_name"] == "reviews"


@pytest.mark.parametrize("path", ["/", "/dashboard", "/dashboard/"])
def test_the_page_opens_at_the_study(app: WSGIApplication, path: str) -> None:
    answer: dict[str, Any] = {}

    def start_response(status: str, headers: list[tuple[str, str]], *_: Any) -> Callable[[bytes], None]:
        answer.update(status=status, **dict(headers))
        return lambda _: None

    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    assert b"".join(app({**environ, "PATH_INFO": path, "HTTP_HOST": "localhost"}, start_response)) == b""
    assert (answer["status"], answer["Location"]) == ("302 Found", "/dashboard/studies/0")


def test_buttons_that_would_change_a_study_are_hidden(app: WSGIApplication) -> None:
    import optuna_dashboard

    status, page = ask(app, "/dashboard/studies/0")
    assert status == 200
    head = page.decode().partition("</head>")[0]
    script = (Path(optuna_dashboard.__file__).parent / "public" / "bundle.js").read_text(encoding="utf-8")
    for label in ("delete study", "rename study", "delete artifact"):
        assert f'[aria-label="{label}"]' in head
        assert f'"aria-label":"{label}"' in script, "Optuna Dashboard calls its buttons so"
    assert '[data-testid="AddBoxIcon"]' in head
    assert '"AddBox")' in script


@pytest.mark.parametrize("method", ["PATCH", "TRACE", "CONNECT", "delete", "MADE-UP"])
def test_other_methods_never_reach_the_page(method: str) -> None:
    def never(environ: Any, start_response: Any) -> list[bytes]:
        raise AssertionError("reached")

    assert ask(read_only(never), "/api/studies/0", method)[0] == 403


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "localhost:9000", "LocalHost:80"])
def test_it_answers_to_its_own_names(app: WSGIApplication, host: str) -> None:
    assert ask(app, "/api/studies", host=host)[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "localhost.evil.example", "localhost:80@evil", "127.0.0.1.nip.io", ""]
)
def test_it_answers_to_no_other_name(app: WSGIApplication, host: str) -> None:
    status, answer = ask(app, "/api/studies", host=host)
    assert status == 403
    assert "localhost" in answer["reason"]


def view_of(folder: Path) -> StudyView:
    return StudyView(folder, read_state(folder).spec)


def test_the_storage_refuses_to_write(folder: Path) -> None:
    before = contents(folder)
    study = optuna.load_study(storage=view_of(folder), study_name="reviews")
    for write in (lambda: study.set_user_attr("a", 1), study.ask, lambda: study._storage.delete_study(0)):
        with pytest.raises(PermissionError, match="only shows"):
            write()
    assert contents(folder) == before


def test_a_torn_last_line_is_not_read_until_it_is_whole(folder: Path) -> None:
    view, journal = view_of(folder), folder / "study.journal"
    n_trials = len(view.get_all_trials(0))
    line = next(line for line in journal.read_bytes().splitlines(keepends=True) if b'"op_code":4' in line)
    with journal.open("ab", buffering=0) as file:
        file.write(line[: len(line) // 2])
        assert len(view.get_all_trials(0)) == n_trials
        assert view.get_all_studies()[0].system_attrs["dashboard:note_ver"] == 1
        assert len(view_of(folder).get_all_trials(0)) == n_trials
        file.write(line[len(line) // 2 :])
        assert len(view.get_all_trials(0)) == n_trials + 1


def wait_for(what: Callable[[], Any], seconds: float = 60.0) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := what():
            return result
        time.sleep(0.05)
    raise AssertionError("it did not happen")


def test_a_new_trial_is_shown_with_its_note(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autopeft.results.dashboard.MAX_SHARE_OF_TIME", math.inf)
    view, state = view_of(folder), read_state(folder)
    n_trials = len(state.trials)
    assert f"dashboard:{n_trials}:note_ver" not in view.get_study_system_attrs(0)
    store = StudyStore.create(folder / "study.journal", name="reviews", objectives=state.objectives)
    store.add(state.trials[0])
    wait_for(lambda: f"dashboard:{n_trials}:note_ver" in view.get_study_system_attrs(0))


def test_plots_are_made_once_for_each_change(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr("autopeft.results.dashboard.additions", lambda state: made.append(1) or additions(state))
    view = view_of(folder)
    for _ in range(3):
        assert "dashboard:note_ver" in view.get_study_system_attrs(0)
        assert "dashboard:note_ver" in view.get_all_studies()[0].system_attrs
    assert len(made) == 1


def test_a_study_that_is_still_to_come_and_one_that_takes_its_place(tmp_path: Path) -> None:
    folder = tmp_path / "reviews"
    app = read_only(StudyApp(folder))
    assert ask(app, "/dashboard")[0] == 503
    build = fill(Builder(folder=folder))
    assert ask(app, "/dashboard")[0] == 503
    write_study(build.state())
    assert len(ask(app, "/api/studies/0")[1]["trials"]) == 22
    for name in ("study.json", "study.journal"):
        (folder / name).unlink()
    assert ask(app, "/dashboard")[0] == 503
    build.trials = build.trials[:3]
    write_study(build.state())
    assert len(ask(app, "/api/studies/0")[1]["trials"]) == 3


@pytest.fixture
def served(folder: Path) -> Iterator[str]:
    with listen(0) as listening:
        server = Server(listening, StudyApp(folder))
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield url(listening)
        server.shutdown()
        thread.join()


def test_over_a_real_connection(served: str, capfd: pytest.CaptureFixture[str]) -> None:
    import httpx2 as httpx

    answer = httpx.get(f"{served}api/studies/0", timeout=60)
    assert answer.status_code == 200
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert httpx.delete(f"{served}api/studies/0", timeout=60).status_code == 403
    assert httpx.get(f"{served}api/studies", headers={"Host": "evil.example"}, timeout=60).status_code == 403
    assert "Optuna Dashboard" in httpx.get(f"{served}dashboard", timeout=60, follow_redirects=True).text
    # A browser that hangs up in the middle is no error.
    host, port = served.removeprefix("http://").rstrip("/").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"GET /static/bundle.js HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: gzip\r\n\r\n")
    assert httpx.get(f"{served}api/studies/0", timeout=60).status_code == 200
    assert capfd.readouterr() == ("", "")


def test_a_port_that_is_taken() -> None:
    with listen() as first:
        port = first.getsockname()[1]
        assert first.getsockname()[0] == "127.0.0.1"
        with listen() as second:
            assert second.getsockname()[1] > port
        with pytest.raises(OSError, match="in use"):
            listen(port)


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    return result.exit_code, result.output


def test_mistakes_are_told_before_anything_is_served(folder: Path, tmp_path: Path) -> None:
    code, output = run("dashboard", str(tmp_path / "nothing"))
    assert code == 2
    assert "must hold study.json and study.journal" in output
    with listen() as taken:
        code, output = run("dashboard", str(folder), "--port", str(taken.getsockname()[1]))
    assert code == 2
    assert "in use" in output
    assert "give another one" in output
    code, output = run("dashboard", str(folder), "--port", "99999")
    assert code == 2


def test_without_optuna_dashboard_it_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    code, output = run("dashboard", str(folder))
    assert code == 2
    assert "pip install optuna-dashboard" in output


def is_served(address: str) -> bool:
    host, port = address.removeprefix("http://").rstrip("/").split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def test_ctrl_c_ends_it_cleanly(folder: Path) -> None:
    command = [sys.executable, "-m", "autopeft", "dashboard", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        address = process.stdout.readline().split()[0]
        assert is_served(address)
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
        assert process.stderr.read() == f"loading Optuna Dashboard and the study in {folder}\n"
    assert not is_served(address)


def test_on_a_network_it_warns_and_answers_to_the_machine_alone(folder: Path) -> None:
    import httpx2 as httpx

    command = [sys.executable, "-m", "autopeft", "dashboard", str(folder), "--host", "0.0.0.0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        address = process.stdout.readline().split()[0]
        name, port = address.removeprefix("http://").rstrip("/").split(":")
        assert name == socket.gethostname()
        here = f"http://127.0.0.1:{port}/api/studies"
        assert httpx.get(here, timeout=60).status_code == 200
        assert httpx.get(here, headers={"Host": f"{name}:{port}"}, timeout=60).status_code == 200
        assert httpx.get(here, headers={"Host": "192.0.2.7"}, timeout=60).status_code == 200
        assert httpx.get(here, headers={"Host": "evil.example"}, timeout=60).status_code == 403
        assert httpx.delete(f"{here}/0", timeout=60).status_code == 403
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
        assert "no password" in process.stderr.read()


@pytest.mark.parametrize("host", ["192.0.2.7", "no.such.host.invalid"])
def test_an_address_that_the_machine_does_not_have(folder: Path, host: str) -> None:
    code, output = run("dashboard", str(folder), "--host", host)
    assert code == 2
    assert host in output
    assert "give an address of this machine" in output


BESIDE = """
import sys, time
from pathlib import Path
from autopeft.cli.dashboard import beside
with beside(Path(sys.argv[1]), None) as address:
    print(address, flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("ending", ["done", pytest.param("killed", marks=pytest.mark.slow)])
def test_beside_a_search_it_ends_with_the_search(folder: Path, ending: str) -> None:
    command = [sys.executable, "-c", BESIDE, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        address = process.stdout.readline().strip()
        import httpx2 as httpx

        assert httpx.get(f"{address}api/studies", timeout=60).status_code == 200
        if ending == "killed":
            os.kill(process.pid, signal.SIGKILL)
        else:
            process.stdin.write("\n")
            process.stdin.flush()
    wait_for(lambda: not is_served(address))
