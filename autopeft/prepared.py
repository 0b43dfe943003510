"""A validated study with its parts: what a search, a report and workers need of it."""

import importlib.metadata
import platform
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from autopeft.costs.costing import Costing
from autopeft.costs.estimator import Estimator
from autopeft.errors import DesignError, SpaceError
from autopeft.searching.plan import Baseline, SearchPlan
from autopeft.spec.block import make_block
from autopeft.spec.cost import Estimate, Workload
from autopeft.spec.design import Design
from autopeft.spec.learning_rates import HEAD, default_learning_rate
from autopeft.spec.model import ModelSummary
from autopeft.spec.objective import COSTS, find_objective
from autopeft.spec.space import SearchSpace
from autopeft.spec.study import StudySpec
from autopeft.spec.training import Training
from autopeft.spec.unsupported import outside_content
from autopeft.spec.yardstick import fit_yardstick
from autopeft.study.folder import SCHEMA_VERSION
from autopeft.study.hypervolume import FACT as HYPERVOLUME
from autopeft.study.hypervolume import make_box
from autopeft.tasks.base import PreparedData
from autopeft.training.device import timed_design
from autopeft.training.worker import WorkerSetup

REPORT_SECONDS = 10.0
"""What is kept back of a time limit for writing the report: it takes 5 s on a slow core, most of it to import plots."""
REPORT_SHARE = 0.1
"""Of a time limit, where that is less."""
PACKAGES = ("autopeft", "torch", "transformers", "peft", "optuna", "bitsandbytes", "datasets")


@dataclass(frozen=True, kw_only=True)
class PreparedStudy:
    """A validated study with its parts.

    Attributes:
        space: What is searched: the space that was asked for, without what the model cannot have.
        space_notes: What that changed, and what the measurement of the device has to say.
        step_seconds: Measured seconds of a training step by `precision/kernel`.
        licence: Of the base model, as its folder states it; None where it states none.
        box: Ideal and reference point of the hypervolume, as an earlier run of the study fixed them.
        memory_bytes: Of the device.
    """

    spec: StudySpec
    space: SearchSpace
    data: PreparedData
    model: ModelSummary
    training: Training
    limits: dict[str, int]
    metric: str
    workload: Workload
    estimator: Estimator
    space_notes: tuple[str, ...] = ()
    step_seconds: dict[str, float] = field(default_factory=dict)
    licence: str | None = None
    box: dict[str, Any] | None = None
    memory_bytes: int = 0

    @cached_property
    def costing(self) -> Costing:
        """Return what holds designs against the budget: by the fast path where that is clear, by dry runs elsewhere."""
        return Costing(self.estimator, limits=self.limits, space=self.space)

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what preparation has to say: of the data, and of what the space cannot have on this model."""
        return (*self.data.notes, *self.space_notes)

    def smallest(self) -> list[Design]:
        """Return the designs of the space that can be its cheapest, fewest parameters first.

        Raises:
            SpaceError: None of them fits the model, or leaves the longest input its positions.
        """
        designs, refusal = self.space.smallest(self.model), ""
        fitting = []
        for design in designs:
            try:
                self.estimator.check(design)
                self.estimator.trainable_params(design)
                fitting.append(design)
            except DesignError as error:
                refusal = str(error)
        if designs and not fitting:
            raise SpaceError(
                f"some design of the space {self.space.name} must fit the model and the data, but none does: {refusal}"
            )
        return sorted(fitting, key=self.estimator.trainable_params)

    @property
    def device(self) -> str:
        """Return what designs train on, in words."""
        return f"{self.training.device}, {self.memory_bytes / 2**30:.0f} GiB"

    def seconds_per_flop(self) -> float | None:
        """Return what a FLOP of training takes, by the steps that were timed before the search; None where none were.

        Omits: what designs take that have no FLOPs to show for it, such as unpacking quantized weights.
        """
        step = self.step_seconds.get(f"{self.training.precision}/{self.training.kernel}")
        flops = self.estimator(timed_design()).train_flops if step else 0
        return step * self.workload.n_steps / flops if step and flops else None

    def worker_setup(self) -> WorkerSetup:
        """Return what every worker of the study needs."""
        return WorkerSetup(
            model=self.spec.model,
            revision=self.spec.revision,
            trust_remote_code=self.spec.trust_remote_code,
            training=self.training,
            data=self.data,
        )

    def plan(self) -> SearchPlan:
        """Return what the search loop does."""
        return SearchPlan(
            objectives=tuple(find_objective(name) for name in self.spec.objectives),
            metric=find_objective(self.metric),
            limits=self.limits,
            n_full_examples=self.workload.n_examples,
            n_trials=self.spec.n_trials,
            timeout_seconds=self.spec.timeout,
            closing_seconds=closing_seconds(self.spec.timeout),
            halving=self.spec.halving,
            baselines=self._baselines(),
            seed=self.spec.seed,
            test=len(self.data.test) > 0,
            test_size=len(self.data.test) / len(self.data.validation),
            n_validation=len(self.data.validation),
            mean_length=self.workload.n_train_tokens / self.workload.n_examples / self.workload.max_tokens,
            device=self.device,
            memory_bytes=self.memory_bytes,
            seconds_per_flop=self.seconds_per_flop(),
        )

    def description(self) -> dict[str, Any]:
        """Return the resolved study file."""
        return {
            "schema_version": SCHEMA_VERSION,
            "spec": self.spec.to_dict(),
            "model": self.model.to_dict(),
            "training": self.training.model_dump(mode="json"),
            "metric": self.metric,
            "limits": self.limits,
            "n_full_examples": self.workload.n_examples,
            "notes": list(self.notes),
            "fingerprints": self.fingerprints(),
            "facts": {
                "labels": list(self.data.labels),
                "n_train": len(self.data.train),
                "n_validation": len(self.data.validation),
                "n_test": len(self.data.test),
                "max_tokens": self.workload.max_tokens,
                "licence": self.licence,
                "step_seconds": self.step_seconds,
                HYPERVOLUME: self.box or self._make_box(),
                "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
                "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
            },
        }

    def fingerprints(self) -> dict[str, Any]:
        """Return what must not change between the runs of one study."""
        return {
            "model": self.model.fingerprint,
            "data": self.data.fingerprint,
            "space": self.space.fingerprint,
            "objectives": list(self.spec.objectives),
            "metric": self.metric,
            "budget": self.limits,
            "training": self.spec.training.model_dump(mode="json"),
            "seed": self.spec.seed,
            **({"outside_content": outside} if (outside := outside_content(self.space, self.model)) else {}),
        }

    def _make_box(self) -> dict[str, Any]:
        """Return the hypervolume's ideal and reference point."""
        if self.model.n_head_parameters:
            options = self.space.quantization.extremes(self.model.n_layers)
            estimates = [self.estimator(Design(quantization=quantization)) for quantization in options]
        else:
            estimates = self._smallest_estimates()
        return make_box(
            [find_objective(name) for name in self.spec.objectives],
            cheapest={name: min(estimate.cost(name) for estimate in estimates) for name in COSTS},
            limits=self.limits,
            model=self.model,
            n_labels=len(self.data.labels),
        ).to_dict()

    def _smallest_estimates(self) -> list[Estimate]:
        """Return the estimate of the smallest design for each quantization: without new modules an empty one is none.

        Raises:
            SpaceError: None runs on the model.
        """
        found: dict[str, Estimate] = {}
        refusal = ""
        for design in self.smallest():
            if design.quantization not in found:
                try:
                    found[design.quantization] = self.estimator(design)
                except DesignError as error:  # it breaks on the model: the search refuses it, and says why
                    refusal = str(error)
        if not found:
            raise SpaceError(
                f"some design of the space {self.space.name} must run on the model, but none does: {refusal}"
            )
        return list(found.values())

    def _baselines(self) -> tuple[Baseline, ...]:
        rates = {HEAD: default_learning_rate(HEAD)} if self.model.new_modules else {}
        # Without new modules nothing of an empty design trains: it is the base model as it is.
        least = Baseline(name="head" if self.model.new_modules else "base", design=Design(), learning_rates=rates)
        full = tuple(
            Baseline(
                name="full",
                design=Design(blocks=(make_block("full", {"embeddings": True}),)),
                learning_rates={**rates, "full": rate},
            )
            for rate in self._full_rates()
        )
        design = fit_yardstick(self.spec.yardstick, self.model)
        if design is None:
            return (least, *full)
        rates |= {kind: default_learning_rate(kind) for kind in design.kinds}
        return (Baseline(name="yardstick", design=design, learning_rates=rates), least, *full)

    def _full_rates(self) -> tuple[float, ...]:
        wanted = self.spec.full_fine_tuning
        return ((default_learning_rate("full"),) if wanted else ()) if isinstance(wanted, bool) else wanted


def closing_seconds(timeout: float | None) -> float:
    """Return what is kept back of a time limit for the report."""
    return REPORT_SECONDS if timeout is None else min(REPORT_SECONDS, REPORT_SHARE * timeout)
