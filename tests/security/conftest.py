"""What holds for every attack: an error of our own, soon, and without taking the machine's memory."""

import resource
import signal
from collections.abc import Iterator
from typing import Any

import pytest

CPU_SECONDS = 400
"""For a whole test, far above what it takes: only what hangs reaches it."""
MAX_GROWTH_BYTES = 600 * 2**20


@pytest.fixture(autouse=True)
def limited() -> Iterator[None]:
    """End what hangs, by processor time, and find what took much memory."""

    def hang(number: int, frame: Any) -> None:
        raise TimeoutError(f"still at work after {CPU_SECONDS} s of processor time")

    previous = signal.signal(signal.SIGVTALRM, hang)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, previous)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < MAX_GROWTH_BYTES, f"memory grew by {grown / 2**20:.0f} MiB"
