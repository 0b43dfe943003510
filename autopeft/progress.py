"""What a person sees while a search runs: one line that changes in a terminal or a notebook, plain lines elsewhere."""

import errno
import importlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from autopeft.spec.event import Callback, Event, EventKind
from autopeft.spec.trial import Outcome

_TROUBLE = (Outcome.FAILED, Outcome.OUT_OF_MEMORY)


@contextmanager
def show_progress(wanted: bool | None, console: Console | None = None) -> Iterator[Callback]:
    """Yield a callback that shows progress; what failed is shown as it happens.

    Args:
        wanted: None shows it in terminals and notebooks only; True shows plain lines elsewhere.
        console: Where; standard error by default.
    """
    console = console or Console(stderr=True)
    if wanted is False or not (wanted or console.is_terminal or console.is_jupyter):
        yield lambda _: None
    elif console.is_jupyter:
        yield _in_notebook()
    elif not console.is_terminal:
        yield lambda event: _print_line(console, event)
    else:
        with console.status("starting") as status:

            def show(event: Event) -> None:
                if _is_trouble(event):
                    console.print(event.describe(), style="red", markup=False, highlight=False)
                status.update(
                    event.progress.describe() + (f"  [dim]{running}[/dim]" if (running := _now(event)) else "")
                )

            yield show


@contextmanager
def show_stages(wanted: bool | None, console: Console | None = None) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows what is being prepared, in one line that changes; nothing where no line can change.

    Args:
        wanted: False shows nothing.
        console: Where; standard error by default.
    """
    console = console or Console(stderr=True)
    if wanted is not False and console.is_jupyter:
        display = importlib.import_module("IPython.display").display
        line = display({"text/plain": "preparing"}, raw=True, display_id=True)
        yield lambda text: line.update({"text/plain": text}, raw=True)
    elif wanted is not False and console.is_terminal:
        with console.status("preparing") as status:
            yield lambda text: status.update(escape(text))
    else:
        yield lambda _: None


def _in_notebook() -> Callback:
    """Return a callback that updates one output of the running cell; rich would need ipywidgets for that."""
    display = importlib.import_module("IPython.display").display
    line = display({"text/plain": "starting"}, raw=True, display_id=True)

    def show(event: Event) -> None:
        if _is_trouble(event):
            display({"text/plain": event.describe()}, raw=True)
        line.update({"text/plain": "  ".join([event.progress.describe(), _now(event)]).strip()}, raw=True)

    return show


def _print_line(console: Console, event: Event) -> None:
    if event.kind is EventKind.FINISHED:
        line = f"[{event.progress.describe()}] {event.describe()}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _is_trouble(event: Event) -> bool:
    return event.kind is EventKind.FINISHED and event.trial.outcome in _TROUBLE


def _now(event: Event) -> str:
    """Return what is being trained, as far as the event says it."""
    return event.trial.describe() if event.kind in (EventKind.STARTED, EventKind.RUNG) else ""


class _LogFile(logging.FileHandler):
    """A log that a full disk ends quietly: what must be written says so, and ends the search."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        """Let the line go."""


@contextmanager
def write_log(path: Path) -> Iterator[logging.Logger]:
    """Yield a logger that appends to a file and nowhere else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger(f"autopeft.search.{path}")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield logger
    finally:
        logger.removeHandler(handler)
        handler.close()


@contextmanager
def write_events(path: Path) -> Iterator[Callback]:
    """Yield a callback that appends each event to a file as one line of JSON; see `event_values`.

    Each line is one write, so that whoever reads along sees whole lines. What a write that was cut short left at the
    end of the file (the machine stopped, the disk was full) goes when the next search begins.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    start = time.monotonic()
    try:
        _cut_torn_line(file)

        def write(event: Event) -> None:
            values = event_values(event, seconds=time.monotonic() - start)
            line = (json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n").encode()
            if os.write(file, line) < len(line):
                _cut_torn_line(file)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

        yield write
    finally:
        os.close(file)


def event_values(event: Event, *, seconds: float) -> dict[str, Any]:
    """Return an event as JSON-ready values.

    Keys: `time` (UTC, ISO 8601); `seconds` (since this search began, on a clock that never jumps); `event` (`started`,
    `rung`, `finished`, `refused`); `trial`, `continues` (numbers; null where it continues none); `outcome`; `baseline`;
    `design` (in words); `quantization`; `learning_rates`; `costs` (predicted: `trainable_params`, `peak_memory` in
    bytes, `train_flops`); `excess` (over each limit, relative to it); `examples` (trained on); `scores`,
    `standard_errors` (a value that is not finite is null); `peak_memory` in bytes and `train_seconds` (measured);
    `n_retries`; `reason`; `rung` (at a rung, what was decided: see `autopeft.spec.trial.Verdict`; else null);
    `worker` (which process ran its last segment, `PID@HOST`; null where none has ended in this search); `n_started`,
    `n_running` (designs, by then).

    Args:
        event: What happened.
        seconds: Since the search began.
    """
    trial = event.trial
    at_rung = event.kind is EventKind.RUNG or (event.kind is EventKind.FINISHED and trial.outcome is Outcome.STOPPED)
    verdict = trial.rungs[-1].verdict if at_rung and trial.rungs else None
    return {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "seconds": round(seconds, 3),
        "event": event.kind.value,
        "trial": trial.number,
        "continues": trial.continues,
        "outcome": trial.outcome.value,
        "baseline": trial.baseline,
        "design": trial.describe(),
        "quantization": trial.design.quantization,
        "learning_rates": dict(trial.learning_rates),
        "costs": {name: trial.estimate.cost(name) for name in ("trainable_params", "peak_memory", "train_flops")},
        "excess": dict(trial.excess),
        "examples": trial.examples,
        "scores": _finite(trial.scores),
        "standard_errors": _finite(trial.standard_errors),
        "peak_memory": trial.measured.peak_memory,
        "train_seconds": round(trial.measured.train_seconds, 3),
        "n_retries": trial.n_retries,
        "reason": trial.reason,
        "rung": None if verdict is None else asdict(verdict),
        "worker": event.worker or None,
        "n_started": event.progress.n_started,
        "n_running": event.progress.n_running,
    }


def _finite(scores: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if isfinite(value) else None for name, value in scores.items()}


def _cut_torn_line(file: int) -> None:
    """Cut off what stands after the last newline of a file."""
    position = size = os.fstat(file).st_size
    while position:
        start = max(0, position - 65_536)
        newline = os.pread(file, position - start, start).rfind(b"\n")
        if newline >= 0:
            position = start + newline + 1
            break
        position = start
    if position < size:
        os.ftruncate(file, position)


def call_each(callbacks: Sequence[Callback], log: logging.Logger) -> Callback:
    """Return a callback that calls each of several, after writing the event to the log.

    One that raises does not end the search: its first error is reported, with its traceback in the log.
    """
    reported: set[int] = set()

    def call(event: Event) -> None:
        log.info(event.describe())
        for index, callback in enumerate(callbacks):
            try:
                callback(event)
            except Exception as error:
                if index not in reported:
                    reported.add(index)
                    message = (
                        f"callback {_name(callback)} raised {type(error).__name__}: {error}; the search goes on, and "
                        "its further errors are not reported"
                    )
                    log.exception(message)
                    logging.getLogger("autopeft").warning(message)

    return call


def _name(callback: Callback) -> str:
    return getattr(callback, "__qualname__", None) or type(callback).__qualname__
