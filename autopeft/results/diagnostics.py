"""How a search went: what rungs stopped, how far predictions were off, and what designs wrote side by side."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from scipy.stats import spearmanr

from autopeft.spec.state import StudyState
from autopeft.spec.trial import Outcome, TrialRecord
from autopeft.study.calibration import COVERAGE, Calibration, conformal_bound, memory_ratio

MIN_RANKED = 8
"""Fewer trials than this have no rank correlation worth a number."""


@dataclass(frozen=True, kw_only=True)
class RungCount:
    """What happened at one rung.

    Attributes:
        share: Of the full training, as it was asked; a rung lies at the end of the batch that reaches it.
        reached: Trials that were scored there.
        stopped: Trials that ended there.
        rank_correlation: Spearman's, of the score there with the final one, over trials that trained in full; None
            where they are too few. Trials that the rung stopped are missing from it.
    """

    rung: int
    share: float
    reached: int
    stopped: int
    rank_correlation: float | None
    n_ranked: int


@dataclass(frozen=True, kw_only=True)
class MemoryErrors:
    """How far measured peak memory was from the predicted one, over designs and their baselines.

    Attributes:
        n: Trials whose peak was measured.
        median: Of the relative errors, without their signs.
        worst: The relative error that is furthest from 0; above it, more was measured than predicted.
        bound: Measured / predicted that `COVERAGE` of designs should stay within, by those of the newest version of
            the estimator; None where they are too few to say.
    """

    n: int
    median: float
    worst: float
    bound: float | None

    def describe(self) -> str:
        """Say it in a sentence."""
        trials = f"{self.n} trial{'' if self.n == 1 else 's'}"
        text = f"Over {trials} measured peak memory was off the prediction by {100 * self.median:.1f} % in the median"
        text += f" and {100 * self.worst:+.1f} % at worst"
        if self.bound is None:
            return f"{text}; these are too few to bound it."
        needs = f"{COVERAGE:.0%}".replace("%", " %") + f" of designs should need at most {self.bound:.3f} times the"
        return f"{text}; {needs} prediction{', which budgets allow for' if self.bound > 1 else ''}."


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Floating-point operations per second of training steps, over trials.

    Attributes:
        low, high: The quartiles.
        errors: Measured seconds over those that the search would have predicted from the trials that had ended before,
            minus 1: of each trial but the first, in the order in which they ended.
    """

    n: int
    median: float
    low: float
    high: float
    errors: tuple[float, ...]

    def describe(self) -> str:
        """Say how far predictions were off, in a sentence; nothing where none was made."""
        if not self.errors:
            return ""
        trials = f"{len(self.errors)} trial{'' if len(self.errors) == 1 else 's'}"
        off, worst = median(map(abs, self.errors)), max(self.errors, key=abs)
        text = f"The seconds of {trials}, each predicted from those that had ended before it, were off by"
        return f"{text} {100 * off:.0f} % in the median and {100 * worst:+.0f} % at worst."


@dataclass(frozen=True, kw_only=True)
class Written:
    """What designs wrote for one prompt, in the order of the columns; an empty text where one has none."""

    prompt: str
    reference: str
    outputs: tuple[tuple[TrialRecord, str], ...]


def rung_counts(state: StudyState) -> tuple[RungCount, ...]:
    """Return what happened at each rung, the first one first."""
    numbers = sorted({rung.rung for trial in state.chains for rung in trial.rungs})
    return tuple(_rung_count(state, number) for number in numbers)


def _rung_count(state: StudyState, number: int) -> RungCount:
    scored = [(trial, rung) for trial in state.chains for rung in trial.rungs if rung.rung == number]
    stopped = [t for t, rung in scored if t.outcome is Outcome.STOPPED and t.examples <= rung.examples]
    pairs = [
        (rung.scores[state.metric], trial.value(state.metric))
        for trial, rung in scored
        if trial.outcome is Outcome.COMPLETE and state.metric in rung.scores
    ]
    here, final = np.array(pairs).T if pairs else (np.array([]), np.array([]))
    varied = len(pairs) >= MIN_RANKED and np.ptp(here) > 0 and np.ptp(final) > 0
    halving = state.spec.halving
    return RungCount(
        rung=number,
        share=halving.rungs[number]
        if halving is not None and number < len(halving.rungs)
        else median(rung.examples for _, rung in scored) / state.n_full_examples,
        reached=len(scored),
        stopped=len(stopped),
        rank_correlation=float(spearmanr(here, final).statistic) if varied else None,
        n_ranked=len(pairs),
    )


def memory_errors(state: StudyState) -> MemoryErrors | None:
    """Return how far the predicted peak memory was off, None where none was measured."""
    trials = measured(state)
    if not trials:
        return None
    errors = [(memory_ratio(trial) or 1.0) - 1.0 for trial in trials]
    calibration = Calibration(n_full_examples=state.n_full_examples)
    for trial in state.trials:
        calibration.put(trial)
    return MemoryErrors(
        n=len(errors),
        median=median(abs(error) for error in errors),
        worst=max(errors, key=abs),
        bound=conformal_bound(calibration.memory_ratios(trials[-1].estimate.version)),
    )


def measured(state: StudyState) -> list[TrialRecord]:
    """Return the trials whose measured peak memory can be laid beside the predicted one; see `memory_ratio`."""
    return [trial for trial in state.chains if memory_ratio(trial) is not None]


def timed(state: StudyState) -> list[TrialRecord]:
    """Return the trials whose training steps took a measured time."""
    return [t for t in state.chains if t.measured.train_seconds > 0 and t.examples > 0 and t.baseline != "base"]


def trained_flops(state: StudyState, trial: TrialRecord) -> float:
    """Return the predicted floating-point operations of as much of the training as was done."""
    return trial.estimate.train_flops * trial.examples / state.n_full_examples


def throughput(state: StudyState) -> Throughput | None:
    """Return how fast training steps ran, None where none was timed."""
    trials = timed(state)
    if not trials:
        return None
    seconds = np.array([trial.measured.train_seconds for trial in trials])
    flops = np.array([trained_flops(state, trial) for trial in trials])
    low, middle, high = (float(value) for value in np.quantile(flops / seconds, (0.25, 0.5, 0.75)))
    return Throughput(n=len(trials), median=middle, low=low, high=high, errors=tuple(_time_errors(state, trials)))


def _time_errors(state: StudyState, trials: Iterable[TrialRecord]) -> Iterator[float]:
    calibration = Calibration(n_full_examples=state.n_full_examples)
    for trial in sorted(trials, key=lambda trial: (trial.ended_at or 0.0, trial.number)):
        predicted = calibration.train_seconds(trial.estimate, trial.design.quantization)
        if predicted:
            yield trial.measured.train_seconds * state.n_full_examples / (predicted * trial.examples) - 1
        calibration.put(trial)


def written(state: StudyState, first: Sequence[TrialRecord]) -> tuple[Written, ...]:
    """Return what the references, the yardstick, `first` and then the other designs wrote, by prompt."""
    by_number = {trial.number: trial for trial in state.trials}
    wanted = [trial for trial in (state.base, state.full, state.yardstick, *first) if trial is not None]
    numbers = dict.fromkeys([*(trial.number for trial in wanted), *state.samples])
    columns = [number for number in numbers if number in state.samples and number in by_number]
    prompts = {s.prompt: s.reference for number in columns for s in state.samples[number]}
    outputs = {number: {s.prompt: s.output for s in state.samples[number]} for number in columns}
    return tuple(
        Written(
            prompt=prompt,
            reference=reference,
            outputs=tuple((by_number[n], outputs[n][prompt]) for n in columns if prompt in outputs[n]),
        )
        for prompt, reference in prompts.items()
    )
