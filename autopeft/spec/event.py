"""What a search tells whoever watches it."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from autopeft.spec.trial import TrialRecord


class EventKind(StrEnum):
    """What has just happened to a trial."""

    STARTED = "started"
    RUNG = "rung"
    FINISHED = "finished"
    REFUSED = "refused"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a search is.

    Attributes:
        n_started: Designs that started training, baselines left out.
        n_trials: Designs that may start.
        best: The best quality of a fully trained feasible design, or None.
        elapsed_seconds: Since this call started.
        remaining_seconds: Until the end at the present pace, or None before any trial has ended.
    """

    n_started: int
    n_trials: int
    n_running: int
    n_complete: int
    n_stopped: int
    n_infeasible: int
    n_failed: int
    best: float | None
    elapsed_seconds: float
    remaining_seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Event:
    """One thing that happened, with the trial it happened to."""

    kind: EventKind
    trial: TrialRecord
    progress: Progress


Callback = Callable[[Event], None]
