"""What a search tells whoever watches it."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from autopeft.spec.trial import TrialRecord
from autopeft.spec.units import format_count, format_seconds


class EventKind(StrEnum):
    """What has just happened to a trial."""

    STARTED = "started"
    RUNG = "rung"
    RETRIED = "retried"
    FINISHED = "finished"
    REFUSED = "refused"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a search is.

    Attributes:
        n_started: Designs that started training, baselines left out.
        n_trials: Designs that may start.
        n_infeasible: Proposals that were refused.
        best: The best quality of a fully trained feasible design, or None.
        elapsed_seconds: Since this call started.
        remaining_seconds: Predicted until the end, or None where nothing was ever timed on the device.
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

    def describe(self) -> str:
        """Say it in one line."""
        parts = [
            f"{self.n_started}/{self.n_trials} designs",
            f"{self.n_complete} done",
            f"{self.n_running} running",
            f"{self.n_stopped} stopped",
            f"{self.n_infeasible} infeasible",
            *([f"{self.n_failed} failed"] if self.n_failed else []),
            *([f"best {self.best:.3f}"] if self.best is not None else []),
            format_seconds(self.elapsed_seconds),
            *([f"ETA {format_seconds(self.remaining_seconds)}"] if self.remaining_seconds is not None else []),
        ]
        return ", ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Event:
    """One thing that happened, with the trial it happened to.

    Attributes:
        metric: The quality metric of the study.
        worker: Which process ran the trial's last segment, as `PID@HOST`; empty where none has ended in this search.
    """

    kind: EventKind
    trial: TrialRecord
    progress: Progress
    metric: str
    worker: str = ""

    def describe(self) -> str:
        """Say in one line what happened."""
        trial = self.trial
        what = f"trial {trial.number} {self.kind if self.kind is not EventKind.FINISHED else trial.outcome}"
        parts = [f"{what}: {trial.describe()}", f"{format_count(trial.estimate.trainable_params)} parameters"]
        if self.kind is EventKind.STARTED and trial.continues is not None:
            parts.append(f"continues trial {trial.continues}")
        if self.kind is not EventKind.STARTED and self.metric in trial.scores:
            parts.append(f"{self.metric} {trial.scores[self.metric]:.4f}")
        return "; ".join([*parts, *([trial.reason] if trial.reason else [])])


Callback = Callable[[Event], None]
