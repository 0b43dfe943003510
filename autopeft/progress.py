"""What a person sees while a search runs: one line that changes in a terminal or a notebook, plain lines elsewhere."""

import importlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

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


@contextmanager
def write_log(path: Path) -> Iterator[logging.Logger]:
    """Yield a logger that appends to a file and nowhere else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
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
