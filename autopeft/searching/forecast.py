"""How much a search still has before it, and how long that takes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import log

from autopeft.searching.pace import Pace
from autopeft.searching.plan import SearchPlan
from autopeft.spec.study import EarlyStopping
from autopeft.spec.trial import Outcome, TrialRecord
from autopeft.study.calibration import Calibration

N_EXPECTED = 24
"""How many designs that were scored at a rung the expectation of early stopping weighs as much as."""
LATE_PROMOTIONS = 0.25
"""What passes a rung besides one in `eta`: groups round up, and later results promote trials that were stopped.

By simulated searches of 16 to 64 designs: 0.66 to 0.88 pass for an `eta` of 2, 0.53 to 0.72 for 3, 0.4 to 0.65 for 4.
"""
DAMPING = 0.1
"""Share of the time that is left after which what is said of it has followed a new prediction."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What comes on average.

    Attributes:
        share: Of a full training.
        n_segments: Segments; each ends with an evaluation on the validation split.
        full: Share of trials that train in full.
    """

    share: float
    n_segments: float
    full: float


def expected(halving: EarlyStopping | None, *, rates: Sequence[float] | None = None, after: int = -1) -> Expected:
    """Return what comes on average for a design.

    Args:
        halving: The rungs.
        rates: Share of trials that pass each rung.
        after: The stop at which the trial is scored, and that it may pass or not: a rung, or the end. What comes
            until then is left out. A design that begins is at stop -1, which all pass.
    """
    stops = (*(halving.rungs if halving else ()), 1.0)
    rates = pass_rates(halving) if rates is None else rates
    reached, share, n_segments = 1.0, 0.0, 0.0
    for stop in range(after + 1, len(stops)):
        reached *= rates[stop - 1] if stop else 1.0
        share += reached * (stops[stop] - (stops[stop - 1] if stop else 0.0))
        n_segments += reached
    return Expected(share=share, n_segments=n_segments, full=reached)


def pass_rates(halving: EarlyStopping | None, counts: Sequence[tuple[int, int]] = ()) -> list[float]:
    """Return the share of trials that pass each rung.

    Args:
        halving: The rungs.
        counts: Of trials at each rung: that were scored there, and that have passed it; they correct what `eta` says.
    """
    if halving is None:
        return []
    prior = min(1.0, 1 / halving.eta + LATE_PROMOTIONS)
    seen = [*counts, *[(0, 0)] * (len(halving.rungs) - len(counts))]
    return [(N_EXPECTED * prior + passed) / (N_EXPECTED + reached) for reached, passed in seen]


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What one trial adds to a forecast.

    Attributes:
        flops: Of its full training.
        inference_flops: Of the longest input: what the time of an evaluation is predicted from.
        flops_left: Until its next stop, where it is unfinished.
        stop: That stop: a rung, or the end; None where it has ended.
        n_rungs: Rungs at which it was scored.
        n_passed: Rungs that it has passed.
    """

    quantization: str
    is_design: bool
    is_complete: bool
    flops: int
    inference_flops: int
    flops_left: int
    stop: int | None
    n_rungs: int
    n_passed: int


class Forecast:
    """How long a search still takes; each trial changes a few sums.

    A design that is still to come costs what the others do on average.

    Args:
        plan: What the search does.
        calibration: How fast the device is; it has what the trials here have shown.
        pace: What trials take besides.
    """

    def __init__(self, plan: SearchPlan, calibration: Calibration, pace: Pace) -> None:
        self._plan = plan
        self._calibration = calibration
        self._pace = pace
        self._n_rungs = 0 if plan.halving is None else len(plan.halving.rungs)
        self._works: dict[int, _Work] = {}
        # Whole numbers: what is added and taken away again leaves nothing.
        self._n: Counter[str] = Counter()
        self._flops: Counter[str] = Counter()
        self._inference: Counter[str] = Counter()
        self._flops_left: Counter[str] = Counter()
        self._unfinished: Counter[tuple[str, int]] = Counter()
        self._unfinished_flops: Counter[tuple[str, int]] = Counter()
        self._unfinished_inference: Counter[tuple[str, int]] = Counter()
        self._reached: Counter[int] = Counter()
        self._passed: Counter[int] = Counter()
        self._n_designs = self._n_complete = 0
        self._said: tuple[float, float] | None = None

    def put(self, record: TrialRecord) -> None:
        """Take in a new trial, or a trial's new state; one that continues another stands for both."""
        for number in (record.number, record.continues):
            if number is not None and (known := self._works.pop(number, None)) is not None:
                self._count(known, -1)
        if record.outcome is not Outcome.INFEASIBLE and record.baseline != "base":
            self._works[record.number] = self._work(record)
            self._count(self._works[record.number], 1)

    def remaining_seconds(
        self,
        *,
        elapsed_seconds: float,
        n_baselines_left: int,
        n_workers: int,
        unchecked: Sequence[TrialRecord] = (),
    ) -> float | None:
        """Predict how long the search still takes; None where nothing was started, or ever timed.

        It never exceeds what a time limit leaves. A new prediction is followed little by little, so that one odd trial
        does not make it jump.

        Args:
            elapsed_seconds: Since the call began.
            n_baselines_left: Baselines that wait.
            n_workers: Workers that share what is left.
            unchecked: Trials that wait for the final check.
        """
        total = self._predict(n_baselines_left, n_workers, unchecked)
        if total is None:
            return None
        if self._said is not None:
            before, end = self._said
            weight = min(1.0, (elapsed_seconds - before) / max(DAMPING * total, 1e-9))
            total = max(0.0, end + weight * (elapsed_seconds + total - end) - elapsed_seconds)
        self._said = (elapsed_seconds, elapsed_seconds + total)
        if self._plan.timeout_seconds is None:
            return total
        return min(total, max(0.0, self._plan.timeout_seconds - elapsed_seconds))

    def _predict(self, n_baselines_left: int, n_workers: int, unchecked: Sequence[TrialRecord]) -> float | None:
        speeds = {name: self._calibration.seconds_per_flop(name) for name, n in self._n.items() if n}
        training = {name: speed for name, speed in speeds.items() if speed is not None}
        if not training:
            return None
        evaluation = {name: self._calibration.evaluation_seconds_per_flop(name) or 0.0 for name in training}
        rates = pass_rates(self._plan.halving, [(self._reached[i], self._passed[i]) for i in range(self._n_rungs)])
        overhead, n_known = self._pace.overhead_seconds, sum(self._n[name] for name in training)
        full = sum(speed * self._flops[name] for name, speed in training.items()) / n_known
        score = sum(speed * self._inference[name] for name, speed in evaluation.items()) / n_known
        halving = self._plan.halving

        seconds = sum(speed * self._flops_left[name] for name, speed in training.items())
        n_full = 0.0
        for (name, stop), n in self._unfinished.items():
            if n and name in training:
                later = expected(halving, rates=rates, after=stop)
                seconds += training[name] * self._unfinished_flops[name, stop] * later.share
                each = evaluation[name] * self._unfinished_inference[name, stop] + overhead * n
                seconds += each * (1 + later.n_segments)
                n_full += n * later.full
        new, n_new = expected(halving, rates=rates), max(0, self._plan.n_trials - self._n_designs)
        seconds += n_new * (full * new.share + (score + overhead) * new.n_segments)
        seconds += n_baselines_left * (full + score + overhead)
        n_full += n_new * new.full

        n_at_once = min(n_workers, max(1, self._unfinished.total() + n_new + n_baselines_left))
        checks = 0.0
        if self._plan.test:
            checks = self._pace.check_seconds(unchecked, n_workers=n_workers)
            # A front of n random points has about log(n) of them.
            n_more = log((self._n_complete + n_full + 1) / (self._n_complete + 1)) + n_baselines_left
            checks += n_more * (score * self._plan.test_size + overhead) / n_workers
        return seconds / n_at_once + checks + self._plan.closing_seconds

    def _work(self, record: TrialRecord) -> _Work:
        is_unfinished = record.outcome in (Outcome.RUNNING, Outcome.INTERRUPTED)
        left = max(0, self._plan.next_stop(record) - record.examples) if is_unfinished else 0
        n_rungs = 0 if record.baseline else len(record.rungs)
        return _Work(
            quantization=record.design.quantization,
            is_design=record.has_started or (is_unfinished and not record.baseline),
            is_complete=record.outcome is Outcome.COMPLETE,
            flops=record.estimate.train_flops,
            inference_flops=record.estimate.inference_flops,
            flops_left=round(record.estimate.train_flops * left / self._plan.n_full_examples),
            stop=(self._n_rungs if record.baseline else n_rungs) if is_unfinished else None,
            n_rungs=n_rungs,
            # One that is unfinished was chosen by its last rung; one that was stopped there was not.
            n_passed=n_rungs - (record.outcome is Outcome.STOPPED),
        )

    def _count(self, work: _Work, by: int) -> None:
        name = work.quantization
        self._n[name] += by
        self._flops[name] += by * work.flops
        self._inference[name] += by * work.inference_flops
        self._flops_left[name] += by * work.flops_left
        self._n_designs += by * work.is_design
        self._n_complete += by * work.is_complete
        for rung in range(work.n_rungs):
            self._reached[rung] += by
        for rung in range(work.n_passed):
            self._passed[rung] += by
        if work.stop is not None:
            self._unfinished[name, work.stop] += by
            self._unfinished_flops[name, work.stop] += by * work.flops
            self._unfinished_inference[name, work.stop] += by * work.inference_flops
