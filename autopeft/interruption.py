"""What Ctrl-C and SIGTERM ask of a search.

| signal | what happens |
|---|---|
| Ctrl-C (SIGINT) | what runs is checkpointed at its next step, and what is known is written and returned |
| Ctrl-C again | the search stops at once, as if it had been killed: what is in the record stays |
| SIGTERM | as the first Ctrl-C, within a grace period; when that is over, as the second |
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

TERMINATED = 128 + signal.SIGTERM
"""Exit code of a process that ended because of SIGTERM."""
LAST_SECONDS = 5.0
"""After the grace period, for Python to get a turn: a step of a large model can take longer."""


class Interruption:
    """A request to end a search early, if one has come.

    Attributes:
        signal: The first signal that came.
    """

    def __init__(self, grace_seconds: float) -> None:
        self.signal: signal.Signals | None = None
        self._grace_seconds = grace_seconds
        self._timers: list[threading.Timer] = []
        self._is_over = False

    def is_set(self) -> bool:
        """Return whether the search should end."""
        return self.signal is not None

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Take note of a signal; end the search at once where it is the last word."""
        if self._is_over:
            raise SystemExit(TERMINATED)
        if self.signal is not None and number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        if self.signal is not None:
            return  # schedulers send SIGTERM more than once
        self.signal = signal.Signals(number)
        if number == signal.SIGTERM:
            self._start_grace()
            _say(f"SIGTERM: what runs is checkpointed within {self._grace_seconds:g} s")
        else:
            _say("stopping: what runs is checkpointed at its next step; Ctrl-C again stops at once")

    def close(self) -> None:
        """Let the grace period be."""
        for timer in self._timers:
            timer.cancel()

    def _start_grace(self) -> None:
        main = threading.main_thread().ident
        assert main is not None

        def end() -> None:
            self._is_over = True
            signal.pthread_kill(main, signal.SIGTERM)

        # What cannot be interrupted is ended all the same: the scheduler's SIGKILL would be next.
        self._timers = [
            threading.Timer(self._grace_seconds, end),
            threading.Timer(self._grace_seconds + LAST_SECONDS, os._exit, [TERMINATED]),
        ]
        for timer in self._timers:
            timer.daemon = True
            timer.start()


@contextmanager
def on_signals(grace_seconds: float) -> Iterator[Interruption]:
    """Turn Ctrl-C and SIGTERM into requests, in the main thread; elsewhere signals are its business."""
    interruption = Interruption(grace_seconds)
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    previous = {number: signal.signal(number, interruption.on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    finally:
        interruption.close()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _say(words: str) -> None:
    with suppress(OSError):  # not print: a handler may run in the middle of one
        os.write(2, f"\n{words}\n".encode())
