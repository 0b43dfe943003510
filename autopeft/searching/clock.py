"""The time of a search: what is left of it, and how its results are waited for."""

import time
from collections.abc import Sequence

from autopeft.executors.base import Executor
from autopeft.searching.pace import MARGIN, Pace
from autopeft.searching.plan import SearchPlan
from autopeft.searching.table import TrialTable
from autopeft.spec.trial import SegmentResult, SegmentStatus, TrialRecord

IDLE_SECONDS = 0.1
"""How long an executor is left alone that has no free worker and runs nothing, until it is asked again."""


class Clock:
    """Counts from the beginning of the call: `plan.spent_seconds` before the moment that it is made."""

    def __init__(self, plan: SearchPlan, executor: Executor, table: TrialTable, pace: Pace) -> None:
        self._plan = plan
        self._executor = executor
        self._table = table
        self._pace = pace
        self._start = executor.now() - plan.spent_seconds
        self._sent: dict[int, float] = {}
        self._workers: set[str] = set()

    def elapsed_seconds(self) -> float:
        """Return the time since the call began."""
        return self._executor.now() - self._start

    def seconds_left(self) -> float | None:
        """Return the time until training and the final check must have ended; None without a limit."""
        if self._plan.timeout_seconds is None:
            return None
        return max(0.0, self._plan.timeout_seconds - self._plan.closing_seconds - self.elapsed_seconds())

    def training_seconds_left(self, also: Sequence[TrialRecord] = ()) -> float | None:
        """Return the time until training must end; None without a limit.

        Time is kept back for the final check of what stands on the front or can be there once what runs has ended.

        Args:
            also: Further trials that would have to be checked.
        """
        left = self.seconds_left()
        if left is None or not self._plan.test:
            return left
        to_check = {r.number: r for r in (*self._table.unchecked(), *self._table.finishing(), *also)}
        seconds = self._pace.check_seconds(to_check.values(), n_workers=self._executor.n_workers)
        return max(0.0, left - MARGIN * seconds)

    def check_seconds_left(self, record: TrialRecord, waiting: Sequence[TrialRecord]) -> float | None:
        """Return the time that the final check of a trial may take; None without a limit.

        Args:
            record: The trial. Its scores may take twice what is predicted; what it writes must leave others their time.
            waiting: Trials that are checked after it.
        """
        left = self.seconds_left()
        if left is None:
            return None
        of_others = self._pace.check_seconds(waiting, n_workers=self._executor.n_workers)
        return min(left, max(2 * self._pace.test_seconds(record), left - of_others))

    def sent(self, trial: int, chosen: float) -> None:
        """Note that a trial has gone to a worker, and when it was chosen on the executor's clock."""
        self._sent[trial] = chosen

    def came_back(self, result: SegmentResult) -> None:
        """Note that a trial's segment has ended.

        The first one of a process also loaded a base model, and says little.
        """
        chosen, measured = self._sent.pop(result.trial), result.measured
        if result.worker in self._workers and result.status is SegmentStatus.DONE:
            seconds = self._executor.now() - chosen
            self._pace.segment_took(seconds, measured_seconds=measured.train_seconds + measured.evaluation_seconds)
        self._workers.add(result.worker)


def next_results(executor: Executor) -> list[SegmentResult]:
    """Wait for results and return them; none where a worker has come back instead, or where nothing runs.

    An executor that has no worker just now and nothing that it could wait for answers at once: it is given a moment.
    """
    results = executor.wait()
    if not results and executor.free() <= 0:
        time.sleep(IDLE_SECONDS)
    return results
