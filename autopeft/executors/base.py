"""What the search loop asks of an executor, and what an executor asks of a worker."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from autopeft.spec.trial import Segment, SegmentResult

T = TypeVar("T")


class Site(Protocol):
    """Where designs will train: what depends on the place is asked of it."""

    @property
    def n_threads(self) -> int | None:
        """Return the threads of each worker; None for as many as here."""

    def call(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Call a function once where workers run, and return its answer."""


class SegmentWorker(Protocol):
    """Runs one segment at a time; what goes wrong comes back in the result."""

    def run(self, segment: Segment, should_stop: Callable[[], bool]) -> SegmentResult:
        """Run a segment; return early with a checkpoint once `should_stop()` is true."""


class Executor(Protocol):
    """Runs segments on `n_workers` workers.

    The loop submits while `free()` is above 0 and then waits; it never submits more. The order in which
    results come back is the executor's.
    """

    n_workers: int

    def free(self) -> int:
        """Return how many more segments can be submitted now."""

    def submit(self, segment: Segment) -> None:
        """Start a segment. Raises RuntimeError where no worker is free."""

    def wait(self) -> list[SegmentResult]:
        """Block until at least one segment has ended and return all that have; empty if none runs."""

    def now(self) -> float:
        """Return the clock that deadlines are counted on, in seconds."""

    def close(self) -> None:
        """Give the workers back; what still runs is lost. Can be called twice."""
