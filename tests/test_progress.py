"""What a person sees while a search runs, and what becomes of callbacks that fail."""

import io
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from autopeft.progress import call_each, event_values, show_progress, show_stages, write_events, write_log
from autopeft.spec.event import Event, EventKind, Progress
from autopeft.spec.trial import Outcome, RungScore, Verdict
from tests.results.generated import Builder, lora

FAR = Progress(
    n_started=3,
    n_trials=8,
    n_running=1,
    n_complete=1,
    n_stopped=1,
    n_infeasible=4,
    n_failed=0,
    best=0.8125,
    elapsed_seconds=61,
    remaining_seconds=300,
)


@pytest.fixture
def events(build: Builder) -> list[Event]:
    """Return a trial's start and end, and the end of one that failed."""
    good = build.add(lora(4), params=1000, skill=0.8)
    bad = build.add(lora(8), params=2000, outcome=Outcome.FAILED, reason="ValueError: [bold]no[/bold]")
    event = Event(kind=EventKind.STARTED, trial=replace(good, outcome=Outcome.RUNNING), progress=FAR, metric="accuracy")
    return [
        event,
        replace(event, kind=EventKind.FINISHED, trial=good),
        replace(event, kind=EventKind.FINISHED, trial=bad),
    ]


@pytest.fixture
def build(tmp_path: Path) -> Builder:
    return Builder(folder=tmp_path / "reviews")


def shown(events: list[Event], wanted: bool | None, *, terminal: bool) -> str:
    file = io.StringIO()
    with show_progress(wanted, Console(file=file, force_terminal=terminal, width=200)) as show:
        for event in events:
            show(event)
    return file.getvalue()


@pytest.mark.parametrize(
    ("wanted", "terminal", "is_shown"), [(None, True, True), (True, False, False), (False, True, False)]
)
def test_stages_of_a_preparation_are_shown_where_a_line_can_change(
    wanted: bool | None, terminal: bool, is_shown: bool
) -> None:
    file = io.StringIO()
    with show_stages(wanted, Console(file=file, force_terminal=terminal, width=200)) as on_stage:
        on_stage("costs of [3] of 8 random designs")
    assert ("costs of [3] of 8 random designs" in file.getvalue()) == is_shown
    assert is_shown or file.getvalue() == ""


def test_without_a_terminal_only_who_asks_sees_lines(events: list[Event]) -> None:
    assert shown(events, None, terminal=False) == ""
    assert shown(events, False, terminal=True) == ""
    finished, failed = shown(events, True, terminal=False).splitlines()
    assert finished.startswith(
        "[3/8 designs, 1 done, 1 running, 1 stopped, 4 infeasible, best 0.812, 1m01s, ETA 5m00s]"
    )
    assert "trial 0 complete: LoRA r=4" in finished
    assert failed.endswith("ValueError: [bold]no[/bold]")


def test_a_terminal_gets_one_line_and_what_failed(events: list[Event]) -> None:
    text = shown(events, None, terminal=True)
    assert "trial 1 failed" in text
    assert "trial 0 complete" not in text
    assert text.count("\n") <= 2  # the line is drawn again in its place


@pytest.fixture
def log(tmp_path: Path) -> Iterator[logging.Logger]:
    with write_log(tmp_path / "search.log") as log:
        yield log


class Broken:
    """A callback that always fails."""

    def __call__(self, event: Event) -> None:
        raise RuntimeError(f"no server for {event.trial.number}")


def test_a_callback_that_raises_is_reported_once(
    events: list[Event], log: logging.Logger, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Event] = []
    call = call_each([Broken(), seen.append], log)
    for event in events:
        call(event)
    assert seen == events
    (record,) = (r for r in caplog.records if r.name == "autopeft")
    assert record.getMessage().startswith("callback Broken raised RuntimeError: no server for 0; the search goes on")
    text = (tmp_path / "search.log").read_text()
    assert text.count("Traceback") == 1
    assert all(event.describe() in text for event in events)


def test_an_interrupt_in_a_callback_is_one(events: list[Event], log: logging.Logger) -> None:
    def interrupt(event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call_each([interrupt], log)(events[0])


def test_a_notebook_gets_one_output_that_is_updated(events: list[Event], monkeypatch: pytest.MonkeyPatch) -> None:
    """IPython's own display system: one output with an id, updated in place, and one for what failed."""
    from IPython.core.displaypub import CapturingDisplayPublisher
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    outputs = CapturingDisplayPublisher()
    monkeypatch.setattr(shell, "display_pub", outputs)
    try:
        with show_progress(None, Console(file=io.StringIO(), force_jupyter=True)) as show:
            for event in events:
                show(event)
    finally:
        InteractiveShell.clear_instance()
    kinds = [(output.get("update", False), output["data"]["text/plain"]) for output in outputs.outputs]
    new = [text for update, text in kinds if not update]
    assert new[0] == "starting"
    assert "trial 1 failed" in new[1]
    assert [text for update, text in kinds if update][-1].startswith("3/8 designs, 1 done")
    line = {output["transient"]["display_id"] for output in outputs.outputs if output.get("transient")}
    assert len(line) == 1


def test_events_are_lines_of_json(events: list[Event], tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"
    with write_events(path) as write:
        for event in events:
            write(event)
            assert path.read_bytes().endswith(b"\n"), "whole lines, at once"
    started, finished, failed = (json.loads(line) for line in path.read_text().splitlines())
    assert [line["event"] for line in (started, finished, failed)] == ["started", "finished", "finished"]
    assert datetime.fromisoformat(started["time"]).tzinfo == UTC
    assert 0 <= started["seconds"] <= failed["seconds"]
    assert finished["scores"] == dict(events[1].trial.scores)
    assert finished["costs"]["trainable_params"] == 1000
    assert (failed["outcome"], failed["reason"]) == ("failed", "ValueError: [bold]no[/bold]")


def test_a_line_that_was_cut_short_goes_when_the_search_resumes(events: list[Event], tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"
    with write_events(path) as write:
        write(events[0])
    whole = path.read_bytes()
    for torn in (b'{"time": "2026', b"x" * 200_000):
        path.write_bytes(whole + torn)
        with write_events(path) as write:
            write(events[1])
        first, second = path.read_text().splitlines()
        assert first.encode() + b"\n" == whole
        assert json.loads(second)["trial"] == events[1].trial.number


def test_scores_that_are_not_finite_are_null(events: list[Event]) -> None:
    trial = replace(events[1].trial, scores={"accuracy": float("nan"), "loss": float("inf")})
    values = event_values(replace(events[1], trial=trial), seconds=1.0)
    assert values["scores"] == {"accuracy": None, "loss": None}
    json.dumps(values, allow_nan=False)


def test_a_stopped_trial_says_what_its_rung_compared(events: list[Event]) -> None:
    verdict = Verdict(goes_on=False, stratum=0, n_strata=1, place=3, n_compared=4, n_chosen=2, cut_loss=-0.8, n_known=4)
    rung = RungScore(rung=0, examples=10, scores={"accuracy": 0.5}, event=7, verdict=verdict)
    trial = replace(events[1].trial, outcome=Outcome.STOPPED, rungs=(rung,))
    assert event_values(replace(events[1], trial=trial), seconds=1.0)["rung"]["place"] == 3
    assert event_values(events[1], seconds=1.0)["rung"] is None
