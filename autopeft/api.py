"""The calls that users make: they join the search arm and the training arm."""

import errno
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from autopeft.costs.estimate import estimate
from autopeft.errors import AutopeftError
from autopeft.executors.base import Backend, Executor
from autopeft.executors.local import LocalExecutor, ThisProcess
from autopeft.interruption import Interruption, on_signals
from autopeft.models import artifact, merging
from autopeft.outlook import DryRun, dry_run, memory_warning
from autopeft.preparation import prepare_study
from autopeft.prepared import PreparedStudy
from autopeft.progress import call_each, show_progress, show_stages, write_events, write_log
from autopeft.results.result import SearchResult
from autopeft.searching.runner import Runner
from autopeft.searching.samplers.base import make_sampler
from autopeft.searching.trials import unlearned
from autopeft.spec.cost import Budget
from autopeft.spec.event import Callback
from autopeft.spec.space import SearchSpace
from autopeft.spec.study import StudySpec, make_study
from autopeft.spec.training import Training
from autopeft.study.address import local_export
from autopeft.study.description import agree, check_storage, fetch_description
from autopeft.study.folder import StudyFolder, cannot_write
from autopeft.study.state import read_state
from autopeft.study.store import StudyStore
from autopeft.training.worker import make_worker

__all__ = ["estimate", "load", "merge", "open_study", "run_study", "search"]


def search(
    *,
    data: Any,
    space: str | Mapping[str, Any] | SearchSpace = "hybrid",
    budget: Mapping[str, str | float] | Budget | None = None,
    training: Mapping[str, Any] | Training | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool | None = None,
    dry_run: bool = False,
    **study: Any,
) -> SearchResult | DryRun:
    """Search for adapters: train designs within a budget and return their Pareto front.

    The same call again resumes the study. Ctrl-C and SIGTERM end it cleanly: what runs is checkpointed, and what is
    known is returned. A second Ctrl-C, and the end of `grace_seconds` after SIGTERM, stop it at once.

    Args:
        data: Path to csv, json, jsonl, parquet or a saved data set; hub id; or a `datasets.DatasetDict`.
        space: Name in search_spaces/, path to a YAML file, its values, or a `SearchSpace`.
        budget: Limits on a design's estimate, checked before it is trained.
        training: How designs are trained; see `autopeft.Training`.
        callbacks: Called with each `autopeft.Event`, in this process. One that raises is reported once, and the
            search goes on.
        progress: Whether to show how far the search is, on standard error; None shows it in terminals and notebooks.
        dry_run: Validate everything, say how large and how feasible the space is, and train nothing.
        **study: The other keys of `autopeft.StudySpec`: model, columns, task, metric, objectives, n_trials,
            timeout, study_name, output_dir (a folder, or an address such as `s3://bucket/runs`), sampler,
            early_stopping, seed and more.

    Raises:
        StudyError, ModelError, DataError, SpaceError, BudgetError, DesignError: What was asked cannot be
            done; raised before anything is trained.
        StudyMismatchError: The study folder holds a study of another model, data set, space or budget.
        StudyLockedError: Another search writes that folder.
        StorageError: What must be kept cannot be written: the disk is full, say. The same call goes on afterwards.
        SearchError: Trial after trial fails.
    """
    in_memory = None if isinstance(data, str | Path) else data
    values = {
        **study,
        "data": str(data) if in_memory is None else f"<{type(data).__name__} in memory>",
        "space": space.to_dict() if isinstance(space, SearchSpace) else space,
        "budget": budget or {},
        "training": training or {},
    }
    if isinstance(study.get("model"), Path):
        values["model"] = str(study["model"])
    known_space = space if isinstance(space, SearchSpace) else None
    spec = make_study(values)
    return run_study(spec, data=in_memory, space=known_space, callbacks=callbacks, progress=progress, dry=dry_run)


def run_study(
    spec: StudySpec,
    *,
    data: Any = None,
    space: SearchSpace | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool | None = None,
    dry: bool = False,
    on_ready: Callable[[PreparedStudy], None] = lambda _: None,
) -> SearchResult | DryRun:
    """Run a validated study; see `search`.

    Args:
        spec: The study.
        data: The data itself, where it is in memory.
        space: The space itself, where it is in memory.
        callbacks: Called with each event.
        progress: Whether to show how far the search is; None shows it in terminals and notebooks.
        dry: Train nothing.
        on_ready: Called once everything is checked and before the first trial.
    """
    started = time.monotonic()
    if dry:
        check_storage(spec)
        with _backend(spec) as backend, show_stages(progress) as on_stage:
            return dry_run(prepare_study(spec, data=data, space=space, backend=backend, on_stage=on_stage), on_stage)
    folder = StudyFolder.at(spec.location, spec.work_dir)
    folder.acquire()
    try:
        with _explain_full_disk(folder), _backend(spec) as backend:
            with show_stages(progress) as on_stage:
                fetch_description(spec, folder)
                study = prepare_study(spec, data=data, space=space, folder=folder, backend=backend, on_stage=on_stage)
                description = study.description()
                if not agree(spec, folder, description):
                    study = prepare_study(
                        spec, data=data, space=space, folder=folder, backend=backend, on_stage=on_stage
                    )
                    description = study.description()
                warning = memory_warning(study)
            on_ready(study)
            if warning:
                logging.getLogger("autopeft").warning(warning)
            _describe(study, description, folder)
            log_file, event_file = folder.path / "search.log", folder.path / "search.jsonl"
            with on_signals(spec.grace_seconds) as stop:
                with (
                    _publish_at_an_error(folder, log_file, event_file),
                    write_log(log_file) as log,
                    write_events(event_file) as write,
                    show_progress(progress) as show,
                ):
                    on_event = call_each((write, show, *callbacks), log)
                    time_is_up = _search(study, folder, on_event, stop, backend, started)
                state = read_state(folder.path, storage=spec.storage)
                result = SearchResult(state, stopped_by=stop.signal, time_is_up=time_is_up)
                result.save()
                folder.publish()
                return result
    finally:
        folder.release()


def open_study(path: str | Path) -> SearchResult:
    """Look at a study again without searching, also while a search writes it.

    Args:
        path: Its folder, `runs/<study_name>`, or its address, `s3://bucket/runs/<study_name>`.

    Raises:
        ResultError: The folder holds no study.
        StorageError: The address cannot be reached.
    """
    return SearchResult(read_state(path))


def load(path: str | Path, base_model: str | None = None, dtype: Any = None, device_map: Any = None) -> tuple[Any, Any]:
    """Open an export on its base model, or a merged model, ready for inference.

    Args:
        path: The exported folder, one that `merge` wrote, or the address of one: `s3://bucket/runs/reviews/adapters/3`.
        base_model: Where the base model is now, if not where it was.
        dtype: Of the base, as a torch dtype or its name; fp32 where it is not given, as in training. The
            matrix products of a 4-bit base run in it.
        device_map: As transformers takes it; the CPU where it is not given.

    Returns:
        The model in evaluation mode, and the tokenizer of the base (None where the base has none).

    Raises:
        ArtifactError: The folder is incomplete or damaged, or the base is not the one it was made for.
        ModelError: The base cannot be loaded.
        StorageError: There is nothing at the address, or it cannot be reached.
    """
    with local_export(path) as folder:
        return artifact.load(folder, base_model, dtype, device_map)


def merge(
    adapter: str | Path,
    output: str | Path,
    base_model: str | None = None,
    dtype: Any = None,
    *,
    dequantize: bool = False,
) -> Path:
    """Fold an exported adapter into its base model and write a plain transformers model; return its folder.

    Args:
        adapter: The exported folder, or its address.
        output: A new or an empty folder; either all is written or nothing. Its `autopeft.json` and `README.md` say
            what the model was made from.
        base_model: Where the base model is now, if not where it was.
        dtype: Of the merged weights, as a torch dtype or its name; fp32 where it is not given, as in training.
        dequantize: Take the weights of a 4-bit base as its products saw them, in place of refusing it. The merged
            model is then as large as the unquantized one.

    Raises:
        DesignError: The design cannot be folded into weights.
        ArtifactError: The adapter is incomplete or damaged, the base is not the one it was made for, or the output
            folder has content.
        ModelError: The base cannot be loaded.
        StorageError: There is nothing at the address, or it cannot be reached.
    """
    with local_export(adapter) as folder:
        return merging.merge(folder, output, base_model, dtype, dequantize=dequantize)


def _describe(study: PreparedStudy, description: Mapping[str, Any], folder: StudyFolder) -> None:
    """Write the resolved study file, and what paired comparisons hold predictions against."""
    folder.write_json(folder.description, description)
    folder.write_json(folder.predictions("validation", "labels"), study.data.validation.targets.tolist())
    folder.write_json(folder.predictions("test", "labels"), study.data.test.targets.tolist())


@contextmanager
def _backend(spec: StudySpec) -> Iterator[Backend]:
    """Give the place where designs of a study train, and leave it afterwards."""
    if spec.ray is None:
        yield ThisProcess()
        return
    from autopeft.executors.ray_cluster import RayCluster

    cluster = RayCluster(spec.ray, n_workers=spec.n_workers, device=spec.training.device)
    try:
        yield cluster
    finally:
        cluster.close()


def _executor(study: PreparedStudy, backend: Backend, should_stop: Callable[[], bool]) -> Executor:
    if isinstance(backend, ThisProcess):
        return LocalExecutor(lambda: make_worker(study.worker_setup()), should_stop)
    from autopeft.executors.ray import RayExecutor
    from autopeft.executors.ray_cluster import RayCluster

    assert isinstance(backend, RayCluster)
    return RayExecutor(backend, make_worker, study.worker_setup(), should_stop)


def _search(
    study: PreparedStudy, folder: StudyFolder, on_event: Callback, stop: Interruption, backend: Backend, started: float
) -> bool:
    """Train, and check the front; return whether the time limit kept something from being trained.

    Args:
        study: What to search.
        folder: Of the study.
        on_event: Called with each event.
        stop: Ends the search early.
        backend: Where designs train.
        started: When the call began, in monotonic seconds: the time limit counts from then.
    """
    plan, spec = study.plan(), study.spec
    store = StudyStore.create(folder.journal, name=spec.study_name, objectives=plan.objectives, storage=spec.storage)
    # A resumed sampler must not repeat the draws of its first run, nor two drivers each other's.
    seed = spec.seed + len(store.records()) + store.offset
    sampler = make_sampler(spec.sampler, space=study.space, model=study.model, objectives=plan.objectives, seed=seed)
    sampler.update(unlearned(store))

    executor = _executor(study, backend, stop.is_set)
    try:
        loop = Runner(
            replace(plan, spent_seconds=time.monotonic() - started),
            store=store,
            folder=folder,
            sampler=sampler,
            cost_model=study.costing,
            executor=executor,
            should_stop=stop.is_set,
            on_event=on_event,
        )
        loop.run()
        loop.check_front()
        return loop.time_is_up
    finally:
        store.close()
        executor.close()


@contextmanager
def _publish_at_an_error(folder: StudyFolder, *paths: Path) -> Iterator[None]:
    """Bring files to the study's address, too, where the block does not end well: there they are looked for."""
    try:
        yield
    except BaseException:
        with suppress(Exception):  # what ended the search is what must be said
            folder.publish(*paths)
        raise


@contextmanager
def _explain_full_disk(folder: StudyFolder) -> Iterator[None]:
    """Say of a file that a disk had no room for, whoever wrote it, what to do."""
    try:
        yield
    except OSError as error:
        if isinstance(error, AutopeftError) or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise cannot_write(Path(error.filename or folder.path), error) from error
