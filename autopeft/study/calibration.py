"""What training has shown of predictions: how far peaks lie above them, and how long a FLOP takes.

Nothing of it is stored: all is made from the records of trials, so that a resumed search knows what it knew.
"""

import math
from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from autopeft.spec.cost import Estimate, excess
from autopeft.spec.trial import Outcome, TrialRecord

COVERAGE = 0.9
"""Share of designs whose peak the upper bound should cover."""
MIN_TIMED = 3
"""Timed trials of one quantization from which its own speed is taken; with fewer, the speed is that of all trials."""


def conformal_bound(ratios: Iterable[float], coverage: float = COVERAGE) -> float | None:
    """Return what one more ratio stays under with a probability of at least `coverage`; None from too few to say.

    That is the k-th smallest of n ratios, with k = ceil((n + 1) * coverage): for 90 % it takes 9 of them.

    Source: split conformal prediction, Lei et al. 2018, "Distribution-Free Predictive Inference for Regression",
        section 2.2; one-sided, with measured / predicted as the score.

    Omits: that the guarantee asks for ratios that are exchangeable. A sampler that moves on to other kinds of
        designs, or that the bound itself steers, bends this.
    """
    ordered = sorted(ratios)
    rank = _rank(len(ordered), coverage)
    return ordered[rank - 1] if 0 < rank <= len(ordered) else None


def _rank(n: int, coverage: float = COVERAGE) -> int:
    return math.ceil((n + 1) * coverage)


def memory_ratio(record: TrialRecord) -> float | None:
    """Return measured / predicted peak memory; None where none was measured, and for references.

    Full fine-tuning keeps copies that its estimate leaves out, and the base as it is takes no training step.

    Omits: that no trial measures the writing of samples. Where that is predicted to need most, the ratio is too low,
        and a bound, which is never below the prediction, none the worse for it.
    """
    if record.is_reference or not record.measured.peak_memory:
        return None
    return record.measured.peak_memory / record.estimate.peak_memory


class _Speed:
    """Seconds that something takes for each FLOP: a median over trials, of one quantization where there are a few.

    Args:
        prior: What a few steps before the search showed; used until trials are timed.
    """

    def __init__(self, prior: float | None) -> None:
        self._prior = prior
        self._of_all: list[float] = []
        self._by_quantization: defaultdict[str, list[float]] = defaultdict(list)

    def evidence(self, quantization: str, rate: float) -> list[tuple[list[Any], Any]]:
        """Return a trial's rate with the ordered values that it stands among."""
        return [(self._by_quantization[quantization], rate), (self._of_all, rate)]

    def of(self, quantization: str) -> float | None:
        """Return the seconds of a FLOP on a base of this quantization; None before anything was timed."""
        own = self._by_quantization[quantization]
        rates = own if len(own) >= MIN_TIMED else self._of_all
        return _middle(rates) if rates else self._prior

    def is_timed(self, quantization: str) -> bool:
        """Return whether a trial on such a base has been timed."""
        return bool(self._by_quantization[quantization])


class Calibration:
    """Corrects predictions by what the trials on one device have measured.

    What is asked for every proposal is kept in order, so that a trial changes little of it.

    Args:
        n_full_examples: Examples of a full training.
        seconds_per_flop: Of training, as a few steps before the search took; used until trials are timed.
        examples_per_evaluation: How many inputs of the longest length an evaluation is worth: what turns
            `seconds_per_flop` into a first guess of its time. Without them there is none.
        first_trial: Trials with smaller numbers ran on another device, and count for nothing here.
    """

    def __init__(
        self,
        *,
        n_full_examples: int,
        seconds_per_flop: float | None = None,
        examples_per_evaluation: float = 0.0,
        first_trial: int = 0,
    ) -> None:
        self._n_full_examples = n_full_examples
        self._training = _Speed(seconds_per_flop)
        self._evaluation = _Speed((seconds_per_flop or 0.0) * examples_per_evaluation or None)
        self._first_trial = first_trial
        self._records: dict[int, TrialRecord] = {}
        self._ratios: defaultdict[str, list[float]] = defaultdict(list)
        self._out: list[tuple[int, int]] = []
        self._held: list[int] = []
        self._elsewhere: set[int] = set()

    def put(self, record: TrialRecord) -> None:
        """Take in a new trial, or a trial's new state; one that continues another stands for both."""
        if record.number < self._first_trial or record.continues in self._elsewhere:
            self._elsewhere.add(record.number)
            return
        for number in (record.number, record.continues):
            if number is not None and (known := self._records.pop(number, None)) is not None:
                for values, value in self._evidence(known):
                    del values[bisect_left(values, value)]
        self._records[record.number] = record
        for values, value in self._evidence(record):
            insort(values, value)

    def _evidence(self, record: TrialRecord) -> list[tuple[list[Any], Any]]:
        """Return what a trial has shown, each with the ordered values that it stands among."""
        evidence: list[tuple[list[Any], Any]] = []
        if (rate := self._training_rate(record)) is not None:
            evidence += self._training.evidence(record.design.quantization, rate)
        if (rate := _evaluation_rate(record)) is not None:
            evidence += self._evaluation.evidence(record.design.quantization, rate)
        if (ratio := memory_ratio(record)) is not None:
            evidence.append((self._ratios[record.estimate.version], ratio))
        if not record.is_reference:
            if record.outcome is Outcome.OUT_OF_MEMORY:
                evidence.append((self._out, (record.estimate.device_bytes, record.number)))
            elif record.measured.n_steps:
                evidence.append((self._held, record.estimate.device_bytes))
        return evidence

    # Memory ---------------------------------------------------------------------------------------------------

    def memory_ratios(self, version: str) -> list[float]:
        """Return measured / predicted peak memory of every trial that the same version of the estimator predicted."""
        return list(self._ratios[version])

    def memory_bound(self, estimate: Estimate) -> int:
        """Return the upper bound on a design's peak memory that budgets are checked against.

        Never below the estimate: the largest batches of a workload may be rarer than the batch that was measured.
        """
        return math.ceil(estimate.peak_memory * self._memory_factor(estimate))

    def device_bound(self, estimate: Estimate) -> int:
        """Return what a device must have for a design at most, by the same measurements."""
        return math.ceil(estimate.device_bytes * self._memory_factor(estimate))

    def _memory_factor(self, estimate: Estimate) -> float:
        ratios = self._ratios[estimate.version]
        rank = _rank(len(ratios))
        return max(1.0, ratios[rank - 1]) if 0 < rank <= len(ratios) else 1.0

    def excess(self, limits: Mapping[str, int], estimate: Estimate) -> dict[str, float]:
        """Return by how much a design exceeds each limit, relative to it, its peak memory taken at the upper bound."""
        over = excess(limits, estimate)
        if "peak_memory" in over:
            over["peak_memory"] = self.memory_bound(estimate) / limits["peak_memory"] - 1.0
        return over

    def exhausted(self, estimate: Estimate) -> TrialRecord | None:
        """Return the trial whose end rules this design out: it ran out of memory, and was predicted to need no more.

        One that was predicted to need less than what another trial had is no evidence: something else held
        the memory then. How much of it the device had left at the time isn't known, so that such a trial says
        nothing of the ratio that `memory_bound` uses.
        """
        had = self._held[-1] if self._held else 0
        place = bisect_right(self._out, (had, math.inf))
        if place == len(self._out) or estimate.device_bytes < self._out[place][0]:
            return None
        return self._records[self._out[place][1]]

    # Time -----------------------------------------------------------------------------------------------------

    def train_seconds(self, estimate: Estimate, quantization: str) -> float | None:
        """Predict the seconds of a full training; None before anything was timed."""
        speed = self.seconds_per_flop(quantization)
        return None if speed is None else speed * estimate.train_flops

    def evaluation_seconds(self, estimate: Estimate, quantization: str) -> float | None:
        """Predict the seconds of one evaluation on the validation split; None before anything was timed."""
        speed = self.evaluation_seconds_per_flop(quantization)
        return None if speed is None else speed * estimate.inference_flops

    def seconds_per_flop(self, quantization: str) -> float | None:
        """Return what a FLOP of training takes; None before anything was timed.

        A median, of the trials of the same quantization where there are a few: unpacking weights takes time and no
        FLOPs. A constant for each step besides made predictions worse on the two studies that this was tried on.
        """
        return self._training.of(quantization)

    def evaluation_seconds_per_flop(self, quantization: str) -> float | None:
        """Return what an evaluation of the validation split takes for each FLOP of its longest input, in the same way.

        Omits: that an evaluation which was cut short counts in full.
        """
        return self._evaluation.of(quantization)

    def is_timed(self, quantization: str) -> bool:
        """Return whether a trial of that quantization has been timed: what `seconds_per_flop` says is no guess then."""
        return self._training.is_timed(quantization)

    def _training_rate(self, record: TrialRecord) -> float | None:
        if record.measured.train_seconds <= 0 or not record.examples or record.baseline == "base":
            return None
        flops = record.estimate.train_flops * record.examples / self._n_full_examples
        return record.measured.train_seconds / flops if flops else None


def _evaluation_rate(record: TrialRecord) -> float | None:
    n_evaluations = len(record.rungs) + (record.outcome is Outcome.COMPLETE)
    seconds, flops = record.measured.evaluation_seconds, n_evaluations * record.estimate.inference_flops
    return seconds / flops if seconds > 0 and flops else None


def _middle(ordered: Sequence[float]) -> float:
    """Return the median of values that are in order."""
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
