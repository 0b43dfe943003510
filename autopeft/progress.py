"""What a person sees while a search runs: one line that changes in a terminal, plain lines elsewhere."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from autopeft.spec.event import Callback, Event, EventKind
from autopeft.spec.trial import Outcome

_TROUBLE = (Outcome.FAILED, Outcome.OUT_OF_MEMORY)


@contextmanager
def watch(console: Console) -> Iterator[Callback]:
    """Yield a callback that shows progress on a console; what failed is shown as it happens."""
    if not console.is_terminal:
        yield lambda event: _print_line(console, event)
        return
    with console.status("starting") as status:

        def show(event: Event) -> None:
            if event.kind is EventKind.FINISHED and event.trial.outcome in _TROUBLE:
                console.print(event.describe(), style="red", markup=False, highlight=False)
            running = "" if event.kind is EventKind.FINISHED else f"  [dim]{event.trial.design.describe()}[/dim]"
            status.update(event.progress.describe() + running)

        yield show


def _print_line(console: Console, event: Event) -> None:
    if event.kind is EventKind.FINISHED:
        line = f"[{event.progress.describe()}] {event.describe()}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def write_log(path: Path) -> Iterator[Callback]:
    """Yield a callback that appends every event to a log file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger(f"autopeft.search.{path}")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield lambda event: logger.info(event.describe())
    finally:
        logger.removeHandler(handler)
        handler.close()
