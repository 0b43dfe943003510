"""What a search does next, as a policy without side effects: what it is asked, and what it answers.

A scheduler reads the table of trials and says what a free worker should do, and whether a trial that was just scored
goes on. It writes nothing, has no clock and knows no storage: the runner does what it says.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from autopeft.searching.plan import Baseline
from autopeft.searching.table import TrialTable
from autopeft.spec.trial import TrialRecord, Verdict


@dataclass(frozen=True, kw_only=True)
class Resume:
    """Train a trial on that was stopped or interrupted."""

    record: TrialRecord


@dataclass(frozen=True, kw_only=True)
class Start:
    """Begin a trial: a baseline, or the next design that the sampler proposes where there is none."""

    baseline: Baseline | None = None


Job = Resume | Start
"""What a free worker is to do."""


class Resources(Protocol):
    """What a scheduler may ask of time, files and workers.

    Attributes:
        n_workers: That share the work.
    """

    n_workers: int

    @property
    def baselines(self) -> Sequence[Baseline]:
        """Return the baselines that were not tried yet, and that there is time for."""

    @property
    def can_propose(self) -> bool:
        """Return whether the sampler may still propose designs: some can pass, and there is time."""

    def has_time(self, record: TrialRecord) -> bool:
        """Return whether the time left lets a trial reach its next score."""

    def is_here(self, record: TrialRecord) -> bool:
        """Return whether this driver has what a trial goes on from."""

    def training_seconds(self, record: TrialRecord) -> float:
        """Predict the training that a trial has before it until its next score; 0 where nothing is timed."""


class Scheduler(Protocol):
    """Decides what is trained, and for how long."""

    def next_job(self, table: TrialTable, resources: Resources) -> Job | None:
        """Return what a free worker does next; None where there is nothing that the resources allow."""

    def put_back(self, job: Job) -> None:
        """Take a job back that could not be begun: it is offered again."""

    def on_result(self, table: TrialTable, record: TrialRecord) -> Verdict:
        """Return whether a trial that was just scored at a rung goes on, and what it was compared with."""

    def has_work(self, table: TrialTable) -> bool:
        """Return whether something could be trained on, were there time."""
