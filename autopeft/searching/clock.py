"""The time of a search: what is left of it, and how its results are waited for."""

import time
from math import ceil

from autopeft.executors.base import Executor
from autopeft.searching.ledger import Ledger
from autopeft.searching.plan import SearchPlan
from autopeft.spec.trial import SegmentResult

IDLE_SECONDS = 0.1
"""How long an executor is left alone that has no free worker and runs nothing, until it is asked again."""


class Clock:
    """Counts from the moment that it is made."""

    def __init__(self, plan: SearchPlan, executor: Executor, ledger: Ledger) -> None:
        self._plan = plan
        self._executor = executor
        self._ledger = ledger
        self._start = executor.now()

    def elapsed_seconds(self) -> float:
        """Return the time since the start."""
        return self._executor.now() - self._start

    def seconds_left(self) -> float | None:
        """Return the time until everything must end; None without a limit."""
        if self._plan.timeout_seconds is None:
            return None
        return max(0.0, self._start + self._plan.timeout_seconds - self._executor.now())

    def training_seconds_left(self) -> float | None:
        """Return the time until training must end, with time kept back for the final check; None without a limit."""
        left = self.seconds_left()
        if left is None or not self._plan.test:
            return left
        n_rounds = ceil(self._ledger.n_compared() / self._executor.n_workers)
        return max(0.0, left - n_rounds * self._ledger.evaluation_seconds())


def next_results(executor: Executor) -> list[SegmentResult]:
    """Wait for results and return them; none where a worker has come back instead, or where nothing runs.

    An executor that has no worker just now and nothing that it could wait for answers at once: it is given a moment.
    """
    results = executor.wait()
    if not results and executor.free() <= 0:
        time.sleep(IDLE_SECONDS)
    return results
