"""All trials of a study as they stand, and what follows from them: which run, which are on the front, what is left."""

from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Mapping

from autopeft.searching.forecast import Forecast
from autopeft.searching.pace import Pace
from autopeft.searching.plan import Baseline, SearchPlan
from autopeft.spec.design import Design
from autopeft.spec.event import Progress
from autopeft.spec.trial import Outcome, TrialRecord
from autopeft.study.calibration import Calibration
from autopeft.study.front import Front, compared, eligible


class TrialTable:
    """Every trial of a study by number, and what a scheduler and a runner ask of them.

    What is asked after every event is kept up to date by `put`, which looks at no other trial: a study of thousands
    of them would spend its time counting them otherwise.

    Args:
        first_here: Number of the first trial on the present device.
        checked: Numbers of the trials that have a score on the test split.

    Attributes:
        records: The trials as they stand; the runner puts each change in here after writing it down.
        driver: Name of the search that asks, where several share the study.
        changes: Each new trial and each new state of one, in the order in which they came: a scheduler reads on from
            where it stopped.
        calibration: What they say of predictions on the present device.
        pace: What that means for the time of what comes next.
    """

    def __init__(
        self,
        plan: SearchPlan,
        records: tuple[TrialRecord, ...],
        *,
        first_here: int = 0,
        driver: str = "",
        checked: Collection[int] = (),
    ) -> None:
        self._plan = plan
        self.driver = driver
        self._checked = set(checked)
        self.records: dict[int, TrialRecord] = {}
        self.changes: list[TrialRecord] = []
        self.calibration = Calibration(
            n_full_examples=plan.n_full_examples,
            seconds_per_flop=plan.seconds_per_flop,
            examples_per_evaluation=plan.n_validation * plan.mean_length,
            first_trial=first_here,
        )
        self.pace = Pace(plan, self.calibration)
        self._forecast = Forecast(plan, self.calibration, self.pace)
        self._counts: Counter[Outcome] = Counter()
        self._started: set[int] = set()
        self._running: defaultdict[str, dict[int, TrialRecord]] = defaultdict(dict)
        self._baselines: dict[int, TrialRecord] = {}
        self._complete: dict[int, TrialRecord] = {}
        self._front = Front(plan.objectives)
        self._finishing: dict[int, TrialRecord] = {}
        self._best: float | None = None
        self._roots: dict[int, int] = {}
        self._continued: set[int] = set()
        self._known: set[Hashable] = set()
        self._n_events = 0
        for record in records:
            self.put(record)

    def put(self, record: TrialRecord) -> TrialRecord:
        """Take in a new trial, or a trial's new state."""
        number, before = record.number, self.records.get(record.number)
        self.records[number] = record
        self._n_events = max([self._n_events, *(event + 1 for event in record.events)])
        self.calibration.put(record)
        self._forecast.put(record)
        self._counts[record.outcome] += 1
        if before is None:
            self._known.add(_identity(record.design, record.learning_rates))
            self._roots[number] = number if record.continues is None else self._roots[record.continues]
            if record.continues is not None:
                self._continued.add(record.continues)
        else:
            self._counts[before.outcome] -= 1
        if number not in self._continued:
            (self._started.add if record.has_started else self._started.discard)(self._roots[number])
        if record.outcome is Outcome.RUNNING:
            self._running[record.driver][number] = record
        else:
            self._running[record.driver].pop(number, None)
        if record.outcome is Outcome.RUNNING and record.driver == self.driver and self._plan.is_last_stop(record):
            self._finishing[number] = record
        else:
            self._finishing.pop(number, None)
        if record.outcome is Outcome.COMPLETE:
            self._complete[number] = record
            self._front.put(record)
        if eligible([record]):
            score = record.scores[self._plan.metric.name]
            self._best = score if self._best is None else min(self._best, score, key=self._plan.metric.loss)
        if record.baseline:
            self._baselines[number] = record
        self.changes.append(record)
        return record

    def next_event(self) -> int:
        """Return the place of what happens now in the order of the study's events."""
        self._n_events += 1
        return self._n_events - 1

    def root(self, record: TrialRecord) -> int:
        """Return the number of the trial that a chain of continued trials began with."""
        return self._roots[record.number]

    def knows(self, design: Design, learning_rates: Mapping[str, float]) -> bool:
        """Return whether a trial has had a design at these learning rates."""
        return _identity(design, learning_rates) in self._known

    def running(self, driver: str) -> Collection[TrialRecord]:
        """Return the trials of a driver that run, or are about to, as they are at any time."""
        return self._running[driver].values()

    def has_tried(self, baseline: Baseline) -> bool:
        """Return whether a baseline has been tried."""
        return any(baseline.is_tried_in(record) for record in self._baselines.values())

    def n_started(self) -> int:
        """Return how many proposed designs have started training; a chain counts once."""
        return len(self._started)

    def n_recorded_refusals(self) -> int:
        """Return how many proposals over the budget are recorded."""
        n_baselines = sum(record.outcome is Outcome.INFEASIBLE for record in self._baselines.values())
        return self._counts[Outcome.INFEASIBLE] - n_baselines

    def interrupted(self) -> list[TrialRecord]:
        """Return the trials that were cut short and that nothing has continued."""
        return [record for record in self.records.values() if self.is_interrupted(record)]

    def is_continued(self, record: TrialRecord) -> bool:
        """Return whether another trial goes on from this one."""
        return record.number in self._continued

    def is_interrupted(self, record: TrialRecord) -> bool:
        """Return whether a trial was cut short, and nothing has continued it."""
        outcome = self.records[record.number].outcome
        return outcome is Outcome.INTERRUPTED and record.number not in self._continued

    def compared(self) -> list[TrialRecord]:
        """Return what the final check scores: the front, and the baselines that it is compared with."""
        return compared(list(self._complete.values()), self._plan.objectives)

    def unchecked(self) -> list[TrialRecord]:
        """Return which trials of this driver the final check would score now: those without a score of `compared`."""
        numbers = self._front.numbers().union(number for number in self._baselines if number in self._complete)
        records = (self.records[number] for number in sorted(numbers - self._checked))
        return [record for record in records if record.driver == self.driver]

    def finishing(self) -> Collection[TrialRecord]:
        """Return the trials of this driver that run, and have trained in full once their segment has ended."""
        return self._finishing.values()

    def progress(self, *, elapsed_seconds: float, n_refused: int, n_workers: int) -> Progress:
        """Return how far the search is, and how long it may still take on as many workers."""
        counts = self._counts
        n_baselines_left = sum(not self.has_tried(baseline) for baseline in self._plan.baselines)
        remaining = self._forecast.remaining_seconds(
            elapsed_seconds=elapsed_seconds,
            n_baselines_left=n_baselines_left,
            n_workers=n_workers,
            unchecked=self.unchecked() if self._plan.test else [],
        )
        return Progress(
            n_started=self.n_started(),
            n_trials=self._plan.n_trials,
            n_running=counts[Outcome.RUNNING],
            n_complete=counts[Outcome.COMPLETE],
            n_stopped=counts[Outcome.STOPPED],
            n_infeasible=n_refused,
            n_failed=counts[Outcome.FAILED] + counts[Outcome.OUT_OF_MEMORY],
            best=self._best,
            elapsed_seconds=elapsed_seconds,
            remaining_seconds=remaining,
        )


def _identity(design: Design, learning_rates: Mapping[str, float]) -> Hashable:
    return design.key, tuple(sorted(learning_rates.items()))
