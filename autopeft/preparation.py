"""From what a study asks to what a search needs, with every mistake found before a design is trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from autopeft.costs.estimator import Estimator
from autopeft.costs.support import require_estimates
from autopeft.errors import StudyError, StudyMismatchError
from autopeft.executors.base import Backend
from autopeft.executors.local import ThisProcess
from autopeft.limits import check_some_design_fits, settle_limits
from autopeft.models.base import build_meta
from autopeft.models.model_files import find_licence, locate, travelling_files
from autopeft.prepared import PreparedStudy
from autopeft.searching.samplers.base import make_sampler
from autopeft.spec.block import is_foreign, require_kinds
from autopeft.spec.design import Design
from autopeft.spec.messages import one_of
from autopeft.spec.model import ModelSummary
from autopeft.spec.objective import find_objective
from autopeft.spec.space import SearchSpace
from autopeft.spec.study import StudySpec
from autopeft.spec.task import package_of, require_task
from autopeft.spec.training import Training
from autopeft.spec.unsupported import leave_out_unsupported, outside_content
from autopeft.spec.yardstick import fit_yardstick
from autopeft.study.folder import StudyFolder
from autopeft.study.hypervolume import FACT as HYPERVOLUME
from autopeft.tasks.base import find_task
from autopeft.tasks.prepare import prepare
from autopeft.training.device import choose_training, memory_bytes
from autopeft.training.plan import workload


def prepare_study(
    spec: StudySpec,
    *,
    data: Any = None,
    space: SearchSpace | None = None,
    folder: StudyFolder | None = None,
    backend: Backend | None = None,
    on_stage: Callable[[str], None] = lambda _: None,
) -> PreparedStudy:
    """Read and check everything that a study names.

    Args:
        spec: The study.
        data: The data itself, where it is in memory; `spec.data` otherwise.
        space: The space itself, where it is in memory; `spec.space` otherwise.
        folder: Where the study may have run before; what was chosen then is used again.
        backend: Where designs will train, and speed is measured; here by default.
        on_stage: Called with what is being done, in words.

    Raises:
        StudyError, ModelError, DataError, SpaceError, BudgetError: What the study names cannot be used.
        StudyMismatchError: The folder holds a study of something else.
    """
    backend = backend or ThisProcess()
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
    space, space_notes = leave_out_unsupported(space, meta.summary)
    space.check(meta.summary)
    fit_yardstick(spec.yardstick, meta.summary)
    objectives = [find_objective(name) for name in spec.objectives]
    # A sampler that cannot search this space says so here, before anything is measured.
    make_sampler(spec.sampler, space=space, model=meta.summary, objectives=objectives, seed=spec.seed)
    require_estimates(meta)
    if foreign := [kind for kind in _kinds(space, spec) if is_foreign(kind)]:
        backend.call(require_kinds, foreign)
    if package_of(spec.task):
        backend.call(require_task, spec.task)
    for name, files in _travelling(spec, space, meta.summary).items():
        backend.take_along(name, files)
    known = None if folder is None else folder.read_description()
    training, step_seconds = spec.training, {}
    if known is not None:
        training, step_seconds = Training(**known["training"]), known["facts"]["step_seconds"]
    else:
        on_stage("timing training steps to choose kernel and precision")
        choice = backend.call(
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
        n_threads=backend.n_threads,
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
        memory_bytes=backend.call(memory_bytes, training.device),
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
