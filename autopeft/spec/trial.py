"""What travels between the driver and a worker, and what the study knows of a trial."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import isfinite
from typing import Literal

from autopeft.spec.cost import Estimate, Measured
from autopeft.spec.design import Design

BaselineName = Literal["yardstick", "head", "base", "full"]
"""What is trained or scored besides the designs that the search proposes; see `TrialRecord.baseline`."""


class Outcome(StrEnum):
    """How a trial ended; the same words in the study, the leaderboard and the report."""

    COMPLETE = "complete"
    STOPPED = "stopped"
    INFEASIBLE = "infeasible"
    FAILED = "failed"
    OUT_OF_MEMORY = "out_of_memory"
    INTERRUPTED = "interrupted"
    RUNNING = "running"


class SegmentStatus(StrEnum):
    """How a segment ended.

    `DONE` reached its end; `INTERRUPTED` met its deadline or a request to stop, and left a checkpoint; `LOST` went
    with its worker, which died or hung: the design need not be at fault.
    """

    DONE = "done"
    INTERRUPTED = "interrupted"
    DIVERGED = "diverged"
    FAILED = "failed"
    LOST = "lost"
    OUT_OF_MEMORY = "out_of_memory"


@dataclass(frozen=True, kw_only=True)
class Segment:
    """The unit of work: one trial from example `start` to example `stop` of its full training.

    Attributes:
        trial: Number of the trial in the study.
        learning_rates: By block kind, and for `head`.
        seed: Of the trial: new modules, blocks, batch order and dropout are functions of it.
        start: Examples already trained on; 0 without a checkpoint.
        stop: Train until at least this many examples, at the end of a batch.
        checkpoint: Bytes of the safetensors file that the previous segment returned.
        deadline_seconds: Return within about this many seconds, whatever is done by then.
        full: Examples of a full training; the schedule is a function of examples / full.
        memory_bytes: What it needs on its device at most, as far as can be said before; None where that is not known.
        expected_seconds: How long it should take on its worker, by prediction; None where that is not known. One that
            takes many times as long is taken to hang.
        stage: `train` ends with an evaluation on the validation split. `test` trains nothing and
            evaluates the adapter in `checkpoint` on the test split.
    """

    trial: int
    design: Design
    learning_rates: Mapping[str, float]
    seed: int
    start: int = 0
    stop: int = 0
    full: int = 0
    checkpoint: bytes | None = None
    deadline_seconds: float | None = None
    memory_bytes: int | None = None
    expected_seconds: float | None = None
    stage: str = "train"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What a trained design writes when it is asked.

    Attributes:
        prompt: What it was given.
        output: What it wrote, greedily decoded.
        reference: What the data has there.
    """

    prompt: str
    output: str
    reference: str = ""


@dataclass(frozen=True, kw_only=True)
class SegmentResult:
    """What a worker returns; a failure is data, never an exception.

    Attributes:
        examples: Examples trained on since the start of the trial.
        scores: Quality metrics on the evaluated split, empty where none was made.
        standard_errors: Of each score, over the examples of the split.
        checkpoint: Bytes of a safetensors file to continue from; adapter, optimizer and counters.
        artifact: Files of the exportable adapter folder, by name; only of a trial that trained in full.
        predictions: What the model made of each example of the evaluated split, in its order, as the task
            defines it: the predicted class, or a row of numbers that its metrics are computed from.
        samples: Outputs of a task that generates, made in the final check.
        losses: Mean training loss of each step of the segment.
        error: What went wrong, with its traceback, where something did.
        worker: Which process ran it, as `PID@HOST`; empty where none did, or nothing says which.
    """

    trial: int
    status: SegmentStatus
    examples: int = 0
    scores: Mapping[str, float] = field(default_factory=dict)
    standard_errors: Mapping[str, float] = field(default_factory=dict)
    measured: Measured = field(default_factory=Measured)
    checkpoint: bytes | None = None
    artifact: Mapping[str, bytes] = field(default_factory=dict)
    predictions: tuple[float, ...] | tuple[tuple[float, ...], ...] = ()
    samples: tuple[Sample, ...] = ()
    losses: tuple[float, ...] = ()
    error: str = ""
    worker: str = field(default="", compare=False)

    @property
    def odd_scores(self) -> dict[str, float]:
        """Return the scores that are NaN or infinite: a trial that has some has diverged."""
        return {name: score for name, score in self.scores.items() if not isfinite(score)}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a rung decided about a trial, and what it was compared with at that moment.

    Attributes:
        goes_on: Whether the trial may train on.
        stratum: Its cost stratum, from the cheapest, 0.
        place: Of its loss in the stratum, from the best, 1.
        n_compared: Trials of the stratum that had a score, this one included.
        n_chosen: How many of them may go on. One that is not among these goes on as one of the best that start
            slowly, or as the best of its base.
        cut_loss: Loss of the last of these: the quality metric with the sign that makes smaller better.
        n_known: Trials with a score at the rung, over all strata.
    """

    goes_on: bool
    stratum: int
    n_strata: int
    place: int
    n_compared: int
    n_chosen: int
    cut_loss: float
    n_known: int


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """Return values by name without those that are NaN or infinite, which JSON has not."""
    return {name: value for name, value in values.items() if isfinite(value)}


@dataclass(frozen=True, kw_only=True)
class RungScore:
    """Scores of a trial after `examples` of its training.

    Attributes:
        event: Place of the score in the order of the study's events; see `TrialRecord.first_event`.
        verdict: What was decided; None in older records, and where a search was killed between the two.
    """

    rung: int
    examples: int
    scores: Mapping[str, float]
    event: int | None = field(default=None, compare=False)
    verdict: Verdict | None = field(default=None, compare=False)


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """What the study knows of one trial.

    Attributes:
        number: In the study, from 0, without gaps.
        excess: By how much the estimate exceeds each limit, relative to it.
        examples: Examples trained on.
        continues: Number of the trial whose checkpoint this one went on from.
        n_retries: How often a segment of it was run again, since its worker was lost.
        n_kills: How often the search was killed while it trained this trial and no other, since the trial last gained
            an example.
        reason: Why it ended as it did, in a sentence, where that is not plain.
        baseline: `yardstick` for the default design that the front is measured against, `head` for the
            new modules alone, `base` for the base model as it is, where it has no new module and can be scored
            untrained, `full` for the whole model, fine-tuned; empty for a design that the search proposed.
        started_at, ended_at: When, in seconds since 1970, where the record has kept it; not part of what makes
            two trials equal.
        first_event, last_event: Places of its start and of its end in the order of the study's events, from 0; None
            in older records. With those of the rungs they say what was known when something was decided.
        driver: Name of the search that trains or trained it, where several share the study; its files are with that
            search. Not part of what makes two trials equal.
    """

    number: int
    design: Design
    learning_rates: Mapping[str, float]
    seed: int
    outcome: Outcome
    estimate: Estimate
    excess: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    standard_errors: Mapping[str, float] = field(default_factory=dict)
    rungs: tuple[RungScore, ...] = ()
    measured: Measured = field(default_factory=Measured)
    examples: int = 0
    continues: int | None = None
    n_retries: int = 0
    n_kills: int = 0
    reason: str = ""
    baseline: Literal[""] | BaselineName = ""
    started_at: float | None = field(default=None, compare=False)
    ended_at: float | None = field(default=None, compare=False)
    first_event: int | None = field(default=None, compare=False)
    last_event: int | None = field(default=None, compare=False)
    driver: str = field(default="", compare=False)

    @property
    def events(self) -> tuple[int, ...]:
        """Return the places of its start, its rungs and its end in the order of the study's events, where known."""
        events = (self.first_event, *(rung.event for rung in self.rungs), self.last_event)
        return tuple(event for event in events if event is not None)

    @property
    def is_over_budget(self) -> bool:
        """Return whether its estimate exceeds a limit; only a baseline is trained all the same, as a reference."""
        return any(value > 0 for value in self.excess.values())

    @property
    def is_reference(self) -> bool:
        """Return whether it is no design of the search: never on the front, whatever the budget says."""
        return self.baseline in ("base", "full")

    @property
    def has_started(self) -> bool:
        """Return whether it, the last trial of its chain, stands for a proposed design that began to train.

        One that was cut short before its first step did not: it waits, and counts once it trains.
        """
        waits = self.outcome is Outcome.INTERRUPTED and not self.examples
        return not self.baseline and self.outcome is not Outcome.INFEASIBLE and not waits

    def describe(self) -> str:
        """Say what was trained, in words."""
        if self.baseline == "base":
            return "no adapter, untrained"
        if self.baseline == "full":
            return f"full fine-tuning, learning rate {self.learning_rates['full']:g}"
        return self.design.describe()

    def value(self, name: str) -> float:
        """Return the score or the predicted cost called `name`, NaN where there is none."""
        if name in self.scores:
            return self.scores[name]
        return float(getattr(self.estimate, name, float("nan")))
