"""What a search would do, without training anything, and whether its device is large enough for it."""

import math
import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from autopeft.errors import DesignError
from autopeft.preparation import PreparedStudy
from autopeft.searching.forecast import expected
from autopeft.spec.cost import Estimate, excess
from autopeft.spec.design import Design
from autopeft.spec.space import RandomChooser
from autopeft.spec.units import format_bytes

N_DRAWS = 200
"""Random designs that are held against the budget."""
SAMPLE_SECONDS = 10.0
"""A sample ends early after this long: where dry runs must decide, those of a large model take seconds a design."""


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What a search would do, without training anything.

    Attributes:
        size: Assignments of the space's discrete choices; learning rates do not count.
        feasible_share: Share of random designs within the budget.
        n_drawn: Random designs that the share was measured on.
        n_estimated: How many of them were held against every limit: those within that of the parameters. Fewer where
            dry runs had to decide, and time was up.
        predicted_seconds: Of the whole search on one worker; NaN where no training step was timed.
        notes: What preparation had to say; first a warning where the device is too small.
    """

    size: float
    feasible_share: float
    n_drawn: int
    n_estimated: int
    predicted_seconds: float
    limits: dict[str, int]
    notes: tuple[str, ...]


def dry_run(study: PreparedStudy) -> DryRun:
    """Measure how much of the space the budget leaves, and predict how long the search takes."""
    chooser = RandomChooser(random.Random(study.spec.seed))
    draws = (study.space.draw(chooser, study.model) for _ in range(N_DRAWS))
    designs = [draw.design for draw in draws if not draw.violation]
    limit = study.limits.get("trainable_params", math.inf)
    costing, n_drawn, light = study.costing, 0, []
    for design in _for_a_while(designs):
        n_drawn += 1
        if _fits(study, design) and costing.trainable_params(design) <= limit:
            light.append(design)
    costing.learn(light)
    estimates = [costing.decide(design) for design in _for_a_while(light)]
    within = [cost for cost in estimates if all(value <= 0 for value in excess(study.limits, cost).values())]
    warning = memory_warning(study)
    # Where the budget leaves nothing of the sample, the search trains designs such as the smallest.
    sample = within or estimates or [study.estimator(study.smallest()[0])]
    slow = [f"every estimate takes a dry run: {costing.obstacle}"] if costing.obstacle else []
    if len(estimates) < len(light):
        slow.append(f"in {SAMPLE_SECONDS:.0f} s {len(estimates)} of {len(light)} designs were held against every limit")
    return DryRun(
        size=study.space.size(study.model),
        feasible_share=len(light) / max(1, n_drawn) * len(within) / max(1, len(estimates)),
        n_drawn=n_drawn,
        n_estimated=len(estimates),
        predicted_seconds=_predicted_seconds(study, sample),
        limits=study.limits,
        notes=(*([f"warning: {warning}"] if warning else []), *slow, *study.notes),
    )


def memory_warning(study: PreparedStudy) -> str:
    """Say that nothing in the space fits the device, and what can be done; an empty string where something does.

    The smallest design of each technique is tried, until one fits or `SAMPLE_SECONDS` are over.

    Omits: what the process and the libraries hold besides tensors, and what others hold on the device.
    """
    needs: list[tuple[int, Design]] = []
    for design in _for_a_while(study.smallest()):
        needs.append((study.estimator(design).device_bytes, design))
        if needs[-1][0] <= study.memory_bytes:
            return ""
    if not needs:
        return ""
    least, smallest = min(needs, key=lambda need: need[0])
    training, quantizations = study.training, study.space.quantization.extremes(study.model.n_layers)
    ways = [
        f"lower training.batch_size ({training.batch_size}) or training.max_length (inputs have up to "
        f"{study.workload.max_tokens} tokens)",
        *([] if training.checkpointing else ["set training.checkpointing"]),
        *([] if {"nf4", "fp4"} & set(quantizations) else ["allow quantization nf4 in the space"]),
    ]
    return (
        f"no design of the space is likely to fit the device: the smallest one, {smallest.describe()}, is predicted to "
        f"need {format_bytes(least)}, and {training.device} has {format_bytes(study.memory_bytes)}; "
        f"{', or '.join(ways)}"
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


def _predicted_seconds(study: PreparedStudy, sample: list[Estimate]) -> float:
    """Predict the time of the whole search from the FLOPs of a sample of designs and of the steps that were timed.

    A FLOP of an evaluation is taken to be as fast as one of training, and the share of trials that pass a rung to
    be `1 / eta`.
    """
    speed = study.seconds_per_flop()
    if speed is None:
        return math.nan
    on_average = expected(study.spec.halving)
    n_validation = len(study.data.validation)
    # Evaluations are of the mean length, and `inference_flops` is of the longest.
    shorter = study.workload.n_train_tokens / study.workload.n_examples / study.workload.max_tokens

    def seconds(cost: Estimate, share: float, n_evaluations: float) -> float:
        evaluation = cost.inference_flops * shorter * n_validation
        return speed * (share * cost.train_flops + n_evaluations * evaluation)

    designs = [seconds(cost, on_average.share, on_average.n_evaluations) for cost in sample]
    baselines = [study.estimator(baseline.design) for baseline in study.plan().baselines]
    full = sum(seconds(cost, float(cost.trainable_params > 0), 1.0) for cost in baselines)
    return study.spec.n_trials * sum(designs) / len(designs) + full
