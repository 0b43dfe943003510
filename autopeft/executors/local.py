"""Runs segments in this process, one at a time."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from autopeft.executors.base import SegmentWorker, process_name
from autopeft.spec.trial import Segment, SegmentResult

T = TypeVar("T")


class ThisProcess:
    """The backend of a `LocalExecutor`."""

    n_threads: int | None = None

    def take_along(self, name: str, files: Sequence[Path]) -> None:
        """Do nothing: it is here."""

    def call(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Call a function here."""
        return function(*args, **kwargs)


class LocalExecutor:
    """One worker in this process: a segment runs inside `wait`.

    Args:
        make_worker: Called once, when the first segment runs.
        should_stop: Asked between training steps; true ends the running segment with a checkpoint.
    """

    n_workers = 1

    def __init__(self, make_worker: Callable[[], SegmentWorker], should_stop: Callable[[], bool]) -> None:
        self._make_worker = make_worker
        self._should_stop = should_stop
        self._worker: SegmentWorker | None = None
        self._waiting: Segment | None = None

    def free(self) -> int:
        """Return how many more segments can be submitted now."""
        return 0 if self._waiting is not None else 1

    def submit(self, segment: Segment) -> None:
        """Keep a segment for the next `wait`. Raises RuntimeError where one is kept already."""
        if self._waiting is not None:
            raise RuntimeError(f"submit needs a free worker, but trial {self._waiting.trial} holds the only one")
        self._waiting = segment

    def wait(self) -> list[SegmentResult]:
        """Run the segment that was submitted."""
        if self._waiting is None:
            return []
        segment, self._waiting = self._waiting, None
        if self._worker is None:
            self._worker = self._make_worker()
        return [replace(self._worker.run(segment, self._should_stop), worker=process_name())]

    def now(self) -> float:
        """Return monotonic seconds."""
        return time.monotonic()

    def close(self) -> None:
        """Drop the worker, and with it the base models it holds."""
        self._worker = None
        self._waiting = None
