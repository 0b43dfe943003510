"""What a search would do, without training anything, and whether its device is large enough for it."""

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from html import escape

from autopeft.errors import DesignError
from autopeft.prepared import PreparedStudy
from autopeft.searching.forecast import expected
from autopeft.spec.cost import Estimate, excess, format_limits
from autopeft.spec.design import Design
from autopeft.spec.space import RandomChooser
from autopeft.spec.units import format_bytes, format_seconds

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
        limits: The budget as amounts.
        notes: What preparation had to say; first a warning where the device is too small.
        budget: As it was asked for.
    """

    size: float
    feasible_share: float
    n_drawn: int
    n_estimated: int
    predicted_seconds: float
    limits: dict[str, int]
    notes: tuple[str, ...]
    budget: Mapping[str, str | float] = field(default_factory=dict)

    def __str__(self) -> str:
        """Say all of it in lines of a name and what is to be said of it."""
        seconds = self.predicted_seconds
        time_words = "not known: no training step was timed"
        if math.isfinite(seconds):
            time_words = f"about {format_seconds(seconds)} on one worker"
        lines = [
            ("space", f"{self.size:,} designs, learning rates besides"),
            ("budget", format_limits(self.limits, self.budget)),
            ("feasible", f"{self.feasible_share:.0%} of {self.n_drawn} random designs"),
            ("time", time_words),
            *(("note", note) for note in self.notes),
        ]
        return "\n".join(f"{name:<10}{words}" for name, words in lines)

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the same lines."""
        return f"<pre>{escape(str(self))}</pre>"


def dry_run(study: PreparedStudy, on_stage: Callable[[str], None] = lambda _: None) -> DryRun:
    """Measure how much of the space the budget leaves, and predict how long the search takes.

    Args:
        study: What would be searched.
        on_stage: Called with what is being done, in words.
    """
    on_stage("drawing random designs")
    chooser = RandomChooser(random.Random(study.spec.seed))
    draws = (study.space.draw(chooser, study.model) for _ in range(N_DRAWS))
    designs = [draw.design for draw in draws if not draw.violation]
    limit = study.limits.get("trainable_params", math.inf)
    costing, n_drawn, light = study.costing, 0, []
    for design in _for_a_while(designs):
        n_drawn += 1
        if _fits(study, design) and costing.trainable_params(design) <= limit:
            light.append(design)
    on_stage("estimating the costs of random designs")
    costing.learn(light)
    estimates = []
    for design in _for_a_while(light):
        estimates.append(costing.decide(design))
        on_stage(f"costs of {len(estimates)} of {len(light)} random designs")
    on_stage("predicting the time of the search")
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
        budget=study.spec.budget,
    )


def memory_warning(study: PreparedStudy) -> str:
    """Say that nothing in the space fits the device, and what can be done; an empty string where something does.

    The smallest design of each technique is tried, until one fits or `SAMPLE_SECONDS` are over.

    Omits: what the process and the libraries hold besides tensors, and what others hold on the device.
    """
    needs: list[tuple[int, Design]] = []
    for design in _for_a_while(study.smallest()):
        with suppress(DesignError):  # it breaks on the model: the search refuses it, and says why
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

    A FLOP of an evaluation is taken to be as fast as one of training.

    Omits: loading the model, attaching and proposing designs, and the report.
    """
    speed, plan = study.seconds_per_flop(), study.plan()
    if speed is None:
        return math.nan
    on_average = expected(study.spec.halving)
    n_test = len(study.data.test)

    def seconds(cost: Estimate, share: float, n_examples: float) -> float:
        return speed * (share * cost.train_flops + n_examples * plan.mean_length * cost.inference_flops)

    # A front of n random points has about log(n) of them, and each is scored on the test split.
    n_checked = math.log(1 + on_average.full * plan.n_trials) / plan.n_trials
    n_examples = on_average.n_segments * plan.n_validation + n_checked * n_test
    designs = [seconds(cost, on_average.share, n_examples) for cost in sample]
    baselines = [study.estimator(baseline.design) for baseline in plan.baselines]
    full = sum(seconds(cost, float(cost.trainable_params > 0), plan.n_validation + n_test) for cost in baselines)
    return plan.n_trials * sum(designs) / len(designs) + full
