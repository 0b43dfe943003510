"""From a trial and its checkpoint to the segment that it trains next."""

from collections.abc import Sequence
from dataclasses import replace

from autopeft.searching.clock import Clock
from autopeft.searching.pace import MARGIN
from autopeft.searching.plan import SearchPlan
from autopeft.searching.table import TrialTable
from autopeft.spec.cost import Measured
from autopeft.spec.trial import Segment, TrialRecord
from autopeft.study.folder import StudyFolder

GUESS_FACTOR = 5.0
"""Times what a segment should take while no trial like it has been timed: a base whose weights must be unpacked, or
workers that share a device, take several times as long as the steps that were timed before the search."""


class Segments:
    """Makes segments of trials: from where, how far, and what they may take."""

    def __init__(self, plan: SearchPlan, *, driver: str, folder: StudyFolder, table: TrialTable, clock: Clock) -> None:
        self._plan = plan
        self._driver = driver
        self._folder = folder
        self._table = table
        self._clock = clock
        self._pace = table.pace

    def next_of(self, record: TrialRecord) -> tuple[TrialRecord, Segment]:
        """Return what a trial trains next, and the trial as its last whole checkpoint left it, which may be earlier."""
        saved, checkpoint = self.as_saved(record)
        return saved, self._make(saved, checkpoint)

    def test_of(self, record: TrialRecord, waiting: Sequence[TrialRecord] = ()) -> Segment:
        """Return the final check of a trial that trained in full.

        Args:
            record: The trial.
            waiting: Trials that are checked after it, and that it leaves their time.
        """
        segment = self._make(record, self._folder.checkpoints.at(record.number, record.examples))
        return replace(
            segment,
            stage="test",
            deadline_seconds=self._clock.check_seconds_left(record, waiting),
            expected_seconds=self._pace.test_seconds(record) or None,
        )

    def has_time(self, record: TrialRecord) -> bool:
        """Return whether the time left lets a trial reach its next score, and its final check where that follows."""
        left = self._clock.training_seconds_left((record,) if self._plan.is_last_stop(record) else ())
        return left is None or (left > 0 and left >= MARGIN * self._seconds_until_score(record))

    def has_time_to_check(self, record: TrialRecord) -> bool:
        """Return whether a trial can be scored on the test split in the time that is left."""
        left = self._clock.seconds_left()
        return left is None or (left > 0 and left >= self._pace.test_seconds(record))

    def is_here(self, record: TrialRecord) -> bool:
        """Return whether a trial can go on, or be scored, with what this driver has in its folder."""
        return record.driver == self._driver or bool(self._folder.checkpoints.files(record.number))

    def as_saved(self, record: TrialRecord) -> tuple[TrialRecord, bytes | None]:
        """Return a trial as its last whole checkpoint left it, and that; as it began, where there is none.

        A checkpoint of a trial that it continues is as good as its own.
        """
        link: TrialRecord | None = record
        saved = None
        while saved is None and link is not None:
            saved = self._folder.checkpoints.last(link.number, up_to=record.examples)
            link = None if link.continues is None else self._table.records[link.continues]
        if saved is None:
            return replace(record, examples=0, rungs=(), scores={}, standard_errors={}, measured=Measured()), None
        if saved.examples < record.examples:
            rungs = tuple(rung for rung in record.rungs if rung.examples <= saved.examples)
            scores = rungs[-1].scores if rungs else {}
            record = replace(record, examples=saved.examples, rungs=rungs, scores=scores, standard_errors={})
        return record, saved.content

    def seconds_left_of(self, record: TrialRecord) -> float:
        """Predict the training that a trial has before it until its next score; 0 for all before anything is timed."""
        return self._pace.training_seconds(record, self._n_examples_left(record))

    def _n_examples_left(self, record: TrialRecord) -> int:
        return max(0, self._plan.next_stop(record) - record.examples)

    def _make(self, record: TrialRecord, checkpoint: bytes | None) -> Segment:
        return Segment(
            trial=record.number,
            design=record.design,
            learning_rates=record.learning_rates,
            seed=record.seed,
            start=record.examples,
            stop=self._plan.next_stop(record),
            full=self._plan.n_full_examples,
            checkpoint=checkpoint,
            deadline_seconds=self._clock.training_seconds_left(),
            memory_bytes=self._memory_bytes(record),
            expected_seconds=self._expected_seconds(record),
        )

    def _memory_bytes(self, record: TrialRecord) -> int:
        # Full fine-tuning changes copies of the weights, beside those of the base.
        copies = record.estimate.base_bytes if record.baseline == "full" else 0
        return self._table.calibration.device_bound(record.estimate) + copies

    def _seconds_until_score(self, record: TrialRecord) -> float:
        return self.seconds_left_of(record) + self._pace.evaluation_seconds(record) + self._pace.overhead_seconds

    def _expected_seconds(self, record: TrialRecord) -> float | None:
        """Return what training until the next score, and the score, should take; None where no step was ever timed.

        Until a trial has been timed on a base of that quantization, this is a guess, and several times as much.
        """
        seconds = self.seconds_left_of(record) + self._pace.evaluation_seconds(record)
        is_timed = self._table.calibration.is_timed(record.design.quantization)
        return (seconds if is_timed else GUESS_FACTOR * seconds) or None
