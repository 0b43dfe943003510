"""What a search would do, without training anything."""

import math
import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from autopeft.errors import DesignError
from autopeft.preparation import PreparedStudy
from autopeft.spec.cost import excess
from autopeft.spec.design import Design
from autopeft.spec.space import RandomChooser

N_DRAWS = 200
"""Random designs that are held against the budget's parameter limit."""
N_ESTIMATES = 20
"""Of these, how many are estimated in full."""
SAMPLE_SECONDS = 10.0
"""Each of the two samples ends early after this long: a large model's costs take seconds a design."""


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What a search would do, without training anything.

    Attributes:
        size: Assignments of the space's discrete choices; learning rates do not count.
        feasible_share: Share of random designs within the budget.
        n_drawn: Random designs that the share was measured on.
        predicted_seconds: Of the whole search on one worker.
    """

    size: float
    feasible_share: float
    n_drawn: int
    predicted_seconds: float
    limits: dict[str, int]
    notes: tuple[str, ...]


def dry_run(study: PreparedStudy) -> DryRun:
    """Measure how much of the space the budget leaves, and predict how long the search takes."""
    chooser = RandomChooser(random.Random(study.spec.seed))
    draws = (study.space.draw(chooser, study.model) for _ in range(N_DRAWS))
    limit = study.limits.get("trainable_params", math.inf)
    drawn, light = 0, []
    for design in _for_a_while(draw.design for draw in draws if not draw.violation):
        drawn += 1
        if _fits(study, design) and study.estimator.trainable_params(design) <= limit:
            light.append(design)
    share = len(light) / max(1, drawn)
    if set(study.limits) - {"trainable_params"} and light:
        sample = _for_a_while(light[:N_ESTIMATES])
        fits = [max(excess(study.limits, study.estimator(design)).values()) <= 0 for design in sample]
        share *= sum(fits) / len(fits)
    return DryRun(
        size=study.space.size(study.model),
        feasible_share=share,
        n_drawn=drawn,
        predicted_seconds=_predicted_seconds(study),
        limits=study.limits,
        notes=study.data.notes,
    )


def _for_a_while(designs: Iterable[Design]) -> Iterator[Design]:
    """Yield designs until `SAMPLE_SECONDS` have gone by, at least one."""
    started = time.monotonic()
    for design in designs:
        yield design
        if time.monotonic() - started > SAMPLE_SECONDS:
            return


def _fits(study: PreparedStudy, design: Design) -> bool:
    """Return whether the longest input fits into the model beside what the design puts before it."""
    try:
        study.estimator.check(design)
    except DesignError:
        return False
    return True


def _predicted_seconds(study: PreparedStudy) -> float:
    """Predict the time of the whole search from the measured step.

    Takes every design for as slow as a LoRA in all layers, an evaluation for a third of a training step per
    token, and the share of trials that pass a rung for `1 / eta`.
    """
    step = study.step_seconds[f"{study.training.precision}/{study.training.kernel}"]
    train = step * study.workload.n_steps
    evaluation = train / study.workload.n_examples * len(study.data.validation) / 3
    halving = study.spec.halving
    ends = (*(halving.rungs if halving else ()), 1.0)
    seconds, reached, before = 0.0, 1.0, 0.0
    for end in ends:
        seconds += reached * ((end - before) * train + evaluation)
        reached, before = reached / (halving.eta if halving else 1.0), end
    return study.spec.n_trials * seconds + len(study.plan().baselines) * (train + evaluation)
