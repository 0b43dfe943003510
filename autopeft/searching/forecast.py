"""How much training a search still has before it, and how long that takes."""

from collections import Counter
from dataclasses import dataclass

from autopeft.searching.calibration import Calibration
from autopeft.searching.plan import SearchPlan
from autopeft.spec.study import EarlyStopping
from autopeft.spec.trial import Outcome, TrialRecord

N_EXPECTED = 4
"""How many designs that have ended the expectation of early stopping weighs as much as."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a design takes on average where one in `eta` passes each rung.

    Attributes:
        share: Of a full training.
        n_evaluations: Evaluations on the validation split.
    """

    share: float
    n_evaluations: float


def expected(halving: EarlyStopping | None, *, start: float = 0.0) -> Expected:
    """Return what is on average before a proposed design that has trained for the share `start` of a full training.

    Omits: that strata, quotas and late promotions let more than one in `eta` pass, in small studies above all.
    """
    share, n_evaluations, reached, before = 0.0, 0.0, 1.0, start
    for end in (*(halving.rungs if halving else ()), 1.0):
        if end > start:
            share += reached * (end - before)
            n_evaluations += reached
            reached, before = reached / (halving.eta if halving else 1.0), end
    return Expected(share=share, n_evaluations=n_evaluations)


@dataclass(frozen=True, kw_only=True)
class _Share:
    """What one trial adds to a forecast.

    Attributes:
        flops: Of its full training.
        flops_left: Of what it has still before it on average.
        ended: The share of a full training that it had when it ended; None where it has not, or failed.
    """

    quantization: str
    is_design: bool
    is_unfinished: bool
    flops: int
    flops_left: int
    ended: float | None
    train_seconds: float
    evaluation_seconds: float


class Forecast:
    """How long a search still trains and evaluates; each trial changes a few sums.

    A design that is still to come costs what the others do on average.

    Args:
        plan: What the search does.
        calibration: How fast the device is; it has what the trials here have shown.

    Omits: attaching and proposing, and the final check on the test split.
    """

    def __init__(self, plan: SearchPlan, calibration: Calibration) -> None:
        self._plan = plan
        self._calibration = calibration
        self._shares: dict[int, _Share] = {}
        self._n: Counter[str] = Counter()
        self._flops: Counter[str] = Counter()  # whole numbers: what is added and taken away again leaves nothing
        self._flops_left: Counter[str] = Counter()
        self._n_designs = self._n_unfinished = self._n_ended = 0
        self._ended = self._train_seconds = self._evaluation_seconds = 0.0

    def put(self, record: TrialRecord) -> None:
        """Take in a new trial, or a trial's new state; one that continues another stands for both."""
        for number in (record.number, record.continues):
            if number is not None and (known := self._shares.pop(number, None)) is not None:
                self._count(known, -1)
        if record.outcome is not Outcome.INFEASIBLE and record.baseline != "base":
            self._shares[record.number] = self._share(record)
            self._count(self._shares[record.number], 1)

    def remaining_seconds(self, *, n_baselines_left: int, n_workers: int) -> float | None:
        """Predict how long the search still takes; None where nothing was started, or ever timed.

        Args:
            n_baselines_left: Baselines that wait.
            n_workers: Workers that share what is left.
        """
        seconds = {name: self._calibration.seconds_per_flop(name) for name, n in self._n.items() if n}
        known = {name: speed for name, speed in seconds.items() if speed is not None}
        if not known:
            return None
        mean = sum(speed * self._flops[name] for name, speed in known.items()) / sum(self._n[name] for name in known)
        left = sum(speed * self._flops_left[name] for name, speed in known.items())
        n_new = max(0, self._plan.n_trials - self._n_designs)
        share_of_new = (N_EXPECTED * expected(self._plan.halving).share + self._ended) / (N_EXPECTED + self._n_ended)
        train_seconds = left + mean * (n_new * share_of_new + n_baselines_left)
        n_at_once = min(n_workers, max(1, self._n_unfinished + n_new + n_baselines_left))
        evaluation = self._evaluation_seconds / self._train_seconds if self._train_seconds > 0 else 0.0
        return train_seconds * (1 + evaluation) / n_at_once

    def _share(self, record: TrialRecord) -> _Share:
        is_unfinished = record.outcome in (Outcome.RUNNING, Outcome.INTERRUPTED)
        done = record.examples / self._plan.n_full_examples
        halving = None if record.baseline else self._plan.halving
        left = max(0.0, expected(halving, start=done).share) if is_unfinished else 0.0
        has_ended = not record.baseline and record.outcome in (Outcome.COMPLETE, Outcome.STOPPED)
        return _Share(
            quantization=record.design.quantization,
            is_design=not record.baseline,
            is_unfinished=is_unfinished,
            flops=record.estimate.train_flops,
            flops_left=round(record.estimate.train_flops * left),
            ended=done if has_ended else None,
            train_seconds=record.measured.train_seconds,
            evaluation_seconds=record.measured.evaluation_seconds,
        )

    def _count(self, share: _Share, by: int) -> None:
        self._n[share.quantization] += by
        self._flops[share.quantization] += by * share.flops
        self._flops_left[share.quantization] += by * share.flops_left
        self._n_designs += by * share.is_design
        self._n_unfinished += by * share.is_unfinished
        self._train_seconds += by * share.train_seconds
        self._evaluation_seconds += by * share.evaluation_seconds
        if share.ended is not None:
            self._n_ended += by
            self._ended += by * share.ended
