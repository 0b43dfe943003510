"""What runs in the process of a remote worker."""

import os
import signal
from collections.abc import Callable
from typing import Any

from autopeft.executors.base import SegmentWorker
from autopeft.spec.trial import Segment, SegmentResult

Recipe = tuple[Callable[[Any], SegmentWorker], Any]
"""An importable function that makes a worker, and the value that it makes it from."""


class SegmentActor:
    """Holds a worker: runs its segments in one thread, and hears of a stop in another.

    Args:
        recipe: Makes the worker, here and now.
    """

    def __init__(self, recipe: Recipe) -> None:
        # A terminal sends Ctrl-C to every process in it; the driver alone answers it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        make_worker, setup = recipe
        self._worker = make_worker(setup)
        self._stop_until = -1

    def pid(self) -> int:
        """Return the process id; answered once the worker is made."""
        return os.getpid()

    def run(self, segment: Segment, number: int) -> SegmentResult:
        """Run a segment, the `number`-th that the driver sent out."""
        return self._worker.run(segment, lambda: self._stop_until >= number)

    def stop(self, number: int) -> None:
        """Ask the `number`-th segment and those before it to end; later ones are not meant."""
        self._stop_until = max(self._stop_until, number)
