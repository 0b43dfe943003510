"""What the search loop asks of an executor, and what an executor asks of a worker."""

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from autopeft.spec.trial import Segment, SegmentResult

T = TypeVar("T")


def process_name() -> str:
    """Return what results call the worker in this process."""
    return f"{os.getpid()}@{socket.gethostname()}"


class Backend(Protocol):
    """Where designs will train: what depends on the place is asked of it."""

    @property
    def n_threads(self) -> int | None:
        """Return the threads of each worker; None for as many as here."""

    def take_along(self, name: str, files: Sequence[Path]) -> None:
        """Have a folder of this machine be where workers look for it by its name, with these files of it."""

    def call(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Call a function once where workers run, and return its answer."""


class SegmentWorker(Protocol):
    """Runs one segment at a time; what goes wrong comes back in the result."""

    def run(self, segment: Segment, should_stop: Callable[[], bool]) -> SegmentResult:
        """Run a segment; return early with a checkpoint once `should_stop()` is true."""


@runtime_checkable
class MeasuredWorker(SegmentWorker, Protocol):
    """A worker that knows its device, so that several can share one by what they need."""

    def device_bytes(self) -> int:
        """Return the memory of the device that it trains on."""

    def held_bytes(self) -> Mapping[str, int]:
        """Return the memory of the base models that it keeps loaded, by quantization."""


class Executor(Protocol):
    """Runs segments on `n_workers` workers.

    The loop submits while `free()` is above 0, and one more for each result that `wait` has just returned; then it
    waits. The order in which results come back is the executor's, and a segment that was submitted may wait in it: for
    a worker to start, or for memory.
    """

    n_workers: int

    def free(self) -> int:
        """Return how many more segments can be submitted now."""

    def submit(self, segment: Segment) -> None:
        """Take a segment, and start it as soon as it can. Raises RuntimeError where no worker is free."""

    def wait(self) -> list[SegmentResult]:
        """Block until at least one segment has ended and return all that have; empty if none runs.

        It may also be empty once a worker has come back. Where it is, and still none is free, it is called again after
        a moment: it need not wait by itself for workers that are away.
        """

    def now(self) -> float:
        """Return the clock that deadlines are counted on, in seconds."""

    def close(self) -> None:
        """Give the workers back; what still runs is lost. Can be called twice."""
