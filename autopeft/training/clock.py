"""How long the next step and the evaluation will take, from what the steps so far took."""

import time
from dataclasses import dataclass, field

FORWARD_SHARE = 0.5
"""Time of a forward pass over that of a training step, per token, before an evaluation has been timed.

Backward costs between one and two forward passes (frozen weights need no gradient), so a half is on the safe side.
"""
MARGIN = 1.1
"""Factor on expected times: steps vary."""


@dataclass(kw_only=True)
class Pace:
    """Measured speed of one kind of design on this device; updated as steps are made.

    Attributes:
        step_seconds_per_token: Of training, an exponential mean; None before the first step.
        evaluation_seconds_per_token: Of evaluation; None before the first one.
    """

    step_seconds_per_token: float | None = None
    evaluation_seconds_per_token: float | None = None

    def step_took(self, seconds: float, n_tokens: int) -> None:
        """Take note of a training step."""
        rate, old = seconds / n_tokens, self.step_seconds_per_token
        self.step_seconds_per_token = rate if old is None else 0.7 * old + 0.3 * rate

    def evaluation_took(self, seconds: float, n_tokens: int) -> None:
        """Take note of an evaluation."""
        self.evaluation_seconds_per_token = seconds / n_tokens

    def expected_step_seconds(self, n_tokens: int) -> float:
        """Return what a step is expected to take; 0 before the first one."""
        return (self.step_seconds_per_token or 0.0) * n_tokens * MARGIN

    def expected_evaluation_seconds(self, n_tokens: int) -> float:
        """Return what an evaluation is expected to take."""
        rate = self.evaluation_seconds_per_token
        if rate is None:
            rate = (self.step_seconds_per_token or 0.0) * FORWARD_SHARE
        return rate * n_tokens * MARGIN


@dataclass(frozen=True, kw_only=True)
class Deadline:
    """A moment by which a segment should have returned; None never comes."""

    seconds: float | None
    started: float = field(default_factory=lambda: time.perf_counter())

    def leaves(self, seconds: float) -> bool:
        """Return whether that much time remains."""
        return self.seconds is None or time.perf_counter() - self.started + seconds <= self.seconds
