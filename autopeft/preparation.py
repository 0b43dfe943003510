"""From what a study asks to what a search needs, with every mistake found before a design is trained."""

import importlib.metadata
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from autopeft.errors import DesignError, SpaceError, StudyError, StudyMismatchError
from autopeft.estimation.costing import Costing
from autopeft.estimation.estimator import Estimator
from autopeft.estimation.rehearsal import require_estimates
from autopeft.executors.base import Site
from autopeft.executors.local import ThisProcess
from autopeft.limits import check_some_design_fits, settle_limits
from autopeft.models.base import build_meta
from autopeft.models.model_files import find_licence, locate, travelling_files
from autopeft.searching.plan import Baseline, SearchPlan
from autopeft.spec.block import is_foreign, make_block, require_kinds
from autopeft.spec.cost import Workload
from autopeft.spec.design import Design
from autopeft.spec.impossible import leave_out_impossible, outside_content
from autopeft.spec.learning_rates import HEAD, default_learning_rate
from autopeft.spec.messages import one_of
from autopeft.spec.model import ModelSummary
from autopeft.spec.objective import COSTS, find_objective
from autopeft.spec.space import SearchSpace
from autopeft.spec.study import StudySpec
from autopeft.spec.task import package_of, require_task
from autopeft.spec.training import Training
from autopeft.spec.yardstick import fit_yardstick
from autopeft.study.folder import SCHEMA_VERSION, StudyFolder
from autopeft.study.hypervolume import FACT as HYPERVOLUME
from autopeft.study.hypervolume import make_box
from autopeft.tasks.base import PreparedData, find_task
from autopeft.tasks.prepare import prepare
from autopeft.training.device import choose_training, memory_bytes, timed_design
from autopeft.training.plan import workload
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
            SpaceError: With none of them the longest input fits into the model.
        """
        designs, refusal = self.space.smallest(self.model), ""
        fitting = []
        for design in designs:
            try:
                self.estimator.check(design)
                fitting.append(design)
            except DesignError as error:
                refusal = str(error)
        if designs and not fitting:
            raise SpaceError(f"some design of the space {self.space.name} must fit the data, but none does: {refusal}")
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
            designs = [Design(quantization=quantization) for quantization in options]
        else:
            # Without new modules the empty design trains nothing: the smallest of the space, for each quantization.
            designs = list({design.quantization: design for design in reversed(self.smallest())}.values())
        estimates = [self.estimator(design) for design in designs]
        return make_box(
            [find_objective(name) for name in self.spec.objectives],
            cheapest={name: min(estimate.cost(name) for estimate in estimates) for name in COSTS},
            limits=self.limits,
            model=self.model,
            n_labels=len(self.data.labels),
        ).to_dict()

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


def prepare_study(
    spec: StudySpec,
    *,
    data: Any = None,
    space: SearchSpace | None = None,
    folder: StudyFolder | None = None,
    site: Site | None = None,
    on_stage: Callable[[str], None] = lambda _: None,
) -> PreparedStudy:
    """Read and check everything that a study names.

    Args:
        spec: The study.
        data: The data itself, where it is in memory; `spec.data` otherwise.
        space: The space itself, where it is in memory; `spec.space` otherwise.
        folder: Where the study may have run before; what was chosen then is used again.
        site: Where designs will train, and speed is measured; here by default.
        on_stage: Called with what is being done, in words.

    Raises:
        StudyError, ModelError, DataError, SpaceError, BudgetError: What the study names cannot be used.
        StudyMismatchError: The folder holds a study of something else.
    """
    site = site or ThisProcess()
    metric = _metric(spec)
    on_stage("reading the data")
    model_folder = locate(spec.model, revision=spec.revision, trust_remote_code=spec.trust_remote_code)
    if space is None:
        space = SearchSpace.load(spec.space) if isinstance(spec.space, str) else SearchSpace.from_dict(spec.space)
    prepared_data = prepare(
        spec.data if data is None else data,
        model=spec.model,
        task=spec.task,
        metric=metric,
        columns=spec.columns,
        splits=spec.splits,
        training=spec.training,
        revision=spec.revision,
        trust_remote_code=spec.trust_remote_code,
    )
    on_stage("building the model without its weights")
    head = find_task(spec.task).head(prepared_data.labels)
    meta = build_meta(spec.model, head, revision=spec.revision, trust_remote_code=spec.trust_remote_code)
    space, space_notes = leave_out_impossible(space, meta.summary)
    space.check(meta.summary)
    fit_yardstick(spec.yardstick, meta.summary)
    require_estimates(meta)
    if foreign := [kind for kind in _kinds(space, spec) if is_foreign(kind)]:
        site.call(require_kinds, foreign)
    if package_of(spec.task):
        site.call(require_task, spec.task)
    for name, files in _travelling(spec, space, meta.summary).items():
        site.take_along(name, files)
    known = None if folder is None else folder.read_description()
    training, step_seconds = spec.training, {}
    if known is not None:
        training, step_seconds = Training(**known["training"]), known["facts"]["step_seconds"]
    else:
        on_stage("timing training steps to choose kernel and precision")
        choice = site.call(
            choose_training,
            spec.model,
            training,
            prepared_data,
            revision=spec.revision,
            trust_remote_code=spec.trust_remote_code,
        )
        training, step_seconds = choice.training, choice.step_seconds
        space_notes += choice.notes
    on_stage("estimating what the smallest designs cost")
    load = workload(prepared_data, training)
    estimator = Estimator(
        build_meta(
            spec.model,
            head,
            kernel=training.kernel,  # type: ignore[arg-type]  # resolved: no "auto" is left
            revision=spec.revision,
            trust_remote_code=spec.trust_remote_code,
        ),
        workload=load,
        precision=training.precision,  # type: ignore[arg-type]
        kernel=training.kernel,  # type: ignore[arg-type]
        device=training.device.partition(":")[0],
        n_threads=site.n_threads,
        optimizer=training.optimizer,
        checkpointing=training.checkpointing,
    )
    study = PreparedStudy(
        spec=spec,
        space=space,
        space_notes=space_notes,
        data=prepared_data,
        model=meta.summary,
        training=training,
        limits=settle_limits(spec, meta.summary, estimator, known),
        metric=metric,
        workload=load,
        estimator=estimator,
        step_seconds=step_seconds,
        licence=find_licence(model_folder),
        box=None if known is None else known["facts"].get(HYPERVOLUME),
        memory_bytes=site.call(memory_bytes, training.device),
    )
    if known is not None and folder is not None:
        _check_same(known["fingerprints"], study.fingerprints(), folder)
    check_some_design_fits(study.smallest(), study.limits, estimator)
    return study


def _kinds(space: SearchSpace, spec: StudySpec) -> set[str]:
    """Return the techniques that the study may train."""
    yardstick = Design() if spec.yardstick is None else Design.from_dict(spec.yardstick)
    return {*(block.kind for block in space.blocks), *yardstick.kinds}


def _travelling(spec: StudySpec, space: SearchSpace, model: ModelSummary) -> dict[str, list[Path]]:
    """Return the files of each local folder that workers read: the model's, and what designs are made with."""
    yardstick = Design() if spec.yardstick is None else Design.from_dict(spec.yardstick)
    outside = {**outside_content(space, model)}
    for block in yardstick.blocks:
        outside |= block.outside_content()
    folders = {name: [path for path in Path(name).expanduser().glob("*") if path.is_file()] for name in outside}
    folders[spec.model] = travelling_files(spec.model, trust_remote_code=spec.trust_remote_code)
    return {name: files for name, files in folders.items() if files}


def _metric(spec: StudySpec) -> str:
    """Return the quality that rungs and fronts compare; it must be one that the task measures."""
    metrics = find_task(spec.task).metrics
    qualities = [name for name in spec.objectives if find_objective(name).kind == "quality"]
    for name in (*qualities, *([] if spec.metric is None else [spec.metric])):
        if name not in metrics:
            raise StudyError(f"a quality of {spec.task} {one_of(metrics, name)}")
    if spec.metric is not None and spec.metric not in qualities:
        raise StudyError(f"metric must be among the objectives, but got metric={spec.metric!r}, objectives={qualities}")
    return spec.metric or qualities[0]


def _check_same(known: dict[str, Any], now: dict[str, Any], folder: StudyFolder) -> None:
    if isinstance(known.get("training"), dict):  # what came later has, in a study from before, the value that it had
        known = {**known, "training": {**Training().model_dump(mode="json"), **known["training"]}}
    for name, value in now.items():
        was = known.get(name)
        if was != value:
            raise StudyMismatchError(
                f"a study goes on with the {name} it began with, but {folder.path} was begun with another; "
                f"give another study_name, or move the folder away ({_difference(was, value)})"
            )


def _difference(was: Any, value: Any) -> str:
    """Say what was and what is; of mappings, where they differ."""
    if isinstance(was, dict) and isinstance(value, dict):
        changed = [key for key in {**was, **value} if was.get(key) != value.get(key)]
        was, value = ({key: each.get(key) for key in changed} for each in (was, value))
    return f"was {_short(was)}, is {_short(value)}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:12]}…"
