"""How long what a trial does next will take, from what trials have taken so far."""

from bisect import insort
from collections.abc import Iterable

from autopeft.searching.plan import SearchPlan
from autopeft.spec.trial import TrialRecord
from autopeft.study.calibration import Calibration

MARGIN = 1.15
"""Times its predicted seconds that something must have before it is begun under a time limit: speeds vary."""


class Pace:
    """Predicts seconds on one worker; 0 for what nothing is known of yet.

    Args:
        calibration: What trials have measured; the steps that were timed before the search, until then.
    """

    def __init__(self, plan: SearchPlan, calibration: Calibration) -> None:
        self._plan = plan
        self._calibration = calibration
        self._overheads: list[float] = []

    def segment_took(self, seconds: float, *, measured_seconds: float) -> None:
        """Take note of a segment, from the moment that its trial was chosen to that at which its result was there.

        Args:
            seconds: On the driver's clock.
            measured_seconds: What of that the worker spent in training steps and evaluations.
        """
        insort(self._overheads, max(0.0, seconds - measured_seconds))

    @property
    def overhead_seconds(self) -> float:
        """Return what a segment takes besides steps and evaluations, a median.

        That is choosing a design, attaching it, and writing down what came of it.
        """
        return self._overheads[len(self._overheads) // 2] if self._overheads else 0.0

    def training_seconds(self, record: TrialRecord, n_examples: int) -> float:
        """Predict the training steps on so many examples."""
        full = self._calibration.train_seconds(record.estimate, record.design.quantization) or 0.0
        return full * n_examples / self._plan.n_full_examples

    def evaluation_seconds(self, record: TrialRecord) -> float:
        """Predict an evaluation on the validation split."""
        return self._calibration.evaluation_seconds(record.estimate, record.design.quantization) or 0.0

    def test_seconds(self, record: TrialRecord) -> float:
        """Predict the final check of a trial, without what it writes as samples."""
        return self.evaluation_seconds(record) * self._plan.test_size

    def check_seconds(self, records: Iterable[TrialRecord], *, n_workers: int) -> float:
        """Predict the final check of several trials: rounds of one for each worker, each as long as its longest."""
        seconds = sorted((self.test_seconds(record) + self.overhead_seconds for record in records), reverse=True)
        return sum(seconds[::n_workers])
