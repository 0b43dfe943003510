"""How much training a search still has before it, and how long that takes."""

from collections.abc import Sequence
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


def remaining_seconds(
    plan: SearchPlan, calibration: Calibration, trials: Sequence[TrialRecord], *, n_baselines_left: int, n_workers: int
) -> float | None:
    """Predict how long a search still trains and evaluates; None where nothing was started, or ever timed.

    A design that is still to come costs what the others do on average.

    Args:
        plan: What the search does.
        calibration: How fast the device is.
        trials: Every trial, a chain of continued trials as its last link.
        n_baselines_left: Baselines that wait.
        n_workers: Workers that share what is left.

    Omits: attaching and proposing, and the final check on the test split.
    """
    tried = [t for t in trials if t.outcome is not Outcome.INFEASIBLE and t.baseline != "base"]
    full = {t.number: calibration.train_seconds(t.estimate, t.design.quantization) for t in tried}
    known = [seconds for seconds in full.values() if seconds is not None]
    if not known:
        return None
    mean = sum(known) / len(known)
    designs = [t for t in tried if not t.baseline]
    unfinished = [t for t in tried if t.outcome in (Outcome.RUNNING, Outcome.INTERRUPTED)]
    left = sum((full[t.number] or mean) * _share_left(plan, t) for t in unfinished)
    n_new = max(0, plan.n_trials - len(designs))
    train_seconds = left + mean * (n_new * _share_of_new(plan, designs) + n_baselines_left)
    trained = sum(t.measured.train_seconds for t in tried)
    evaluated = sum(t.measured.evaluation_seconds for t in tried)
    n_at_once = min(n_workers, max(1, len(unfinished) + n_new + n_baselines_left))
    return train_seconds * (1 + (evaluated / trained if trained else 0.0)) / n_at_once


def _share_left(plan: SearchPlan, trial: TrialRecord) -> float:
    """Return how much of a full training is on average still before a trial that runs, or was cut short."""
    start = trial.examples / plan.n_full_examples
    return max(0.0, expected(None if trial.baseline else plan.halving, start=start).share)


def _share_of_new(plan: SearchPlan, designs: Sequence[TrialRecord]) -> float:
    """Return how much of a full training a proposed design takes: as those that have ended did, once there are many."""
    ended = [t.examples / plan.n_full_examples for t in designs if t.outcome in (Outcome.COMPLETE, Outcome.STOPPED)]
    return (N_EXPECTED * expected(plan.halving).share + sum(ended)) / (N_EXPECTED + len(ended))
