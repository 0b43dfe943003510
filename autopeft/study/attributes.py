"""A trial as Optuna keeps it: its state, and everything else in user attributes as JSON."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from autopeft.spec.cost import Estimate, Measured
from autopeft.spec.design import Design
from autopeft.spec.trial import Outcome, RungScore, TrialRecord, Verdict

STATES = {
    Outcome.COMPLETE: TrialState.COMPLETE,
    Outcome.STOPPED: TrialState.PRUNED,
    Outcome.INFEASIBLE: TrialState.PRUNED,
    Outcome.FAILED: TrialState.FAIL,
    Outcome.OUT_OF_MEMORY: TrialState.FAIL,
    Outcome.INTERRUPTED: TrialState.FAIL,
    Outcome.RUNNING: TrialState.RUNNING,
}
"""What Optuna is told for each outcome; the outcome itself is the user attribute `outcome`."""


def attributes_of(record: TrialRecord) -> dict[str, Any]:
    """Return a record as the user attributes of its trial."""
    return {
        "summary": record.describe(),
        "design": record.design.to_dict(),
        "learning_rates": dict(record.learning_rates),
        "seed": record.seed,
        "estimate": record.estimate.to_dict(),
        "excess": dict(record.excess),
        "scores": dict(record.scores),
        "standard_errors": dict(record.standard_errors),
        "rungs": [asdict(rung) for rung in record.rungs],
        "measured": record.measured.to_dict(),
        "examples": record.examples,
        "continues": record.continues,
        "n_retries": record.n_retries,
        "n_kills": record.n_kills,
        "reason": record.reason,
        "baseline": record.baseline,
        "first_event": record.first_event,
        "last_event": record.last_event,
        **({"driver": record.driver} if record.driver else {}),
        "outcome": record.outcome.value,  # the last: what stands before it is whole wherever it is read
    }


def _read_rung(values: Mapping[str, Any]) -> RungScore:
    verdict = values.get("verdict")
    return RungScore(**{**values, "verdict": None if verdict is None else Verdict(**verdict)})


def driver_of(trial: FrozenTrial) -> str:
    """Return which driver of a shared study a trial belongs to; empty where there is one driver alone."""
    return str(trial.user_attrs.get("driver", ""))


def _outcome(trial: FrozenTrial) -> Outcome:
    outcome = Outcome(trial.user_attrs["outcome"])
    if not trial.state.is_finished():
        return Outcome.RUNNING
    # Somebody has ended it with Optuna alone.
    return Outcome.INTERRUPTED if outcome is Outcome.RUNNING else outcome


def read_record(trial: FrozenTrial) -> TrialRecord:
    """Return the record that `attributes_of` was given, as it stands now."""
    attributes = trial.user_attrs
    return TrialRecord(
        number=trial.number,
        design=Design.from_dict(attributes["design"]),
        learning_rates=attributes["learning_rates"],
        seed=attributes["seed"],
        outcome=_outcome(trial),
        estimate=Estimate(**attributes["estimate"]),
        excess=attributes["excess"],
        scores=attributes["scores"],
        standard_errors=attributes["standard_errors"],
        rungs=tuple(_read_rung(rung) for rung in attributes["rungs"]),
        measured=Measured(**attributes["measured"]),
        examples=attributes["examples"],
        continues=attributes["continues"],
        n_retries=attributes.get("n_retries", 0),  # older records lack it
        n_kills=attributes.get("n_kills", 0),
        reason=attributes["reason"],
        baseline=attributes["baseline"],
        first_event=attributes.get("first_event"),
        last_event=attributes.get("last_event"),
        driver=driver_of(trial),
        started_at=trial.datetime_start.timestamp() if trial.datetime_start else None,
        ended_at=trial.datetime_complete.timestamp() if trial.datetime_complete else None,
    )
