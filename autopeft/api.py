"""The calls that users make: they join the search arm and the training arm."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autopeft.costs.estimate import estimate
from autopeft.executors.base import Executor, Site
from autopeft.executors.local import LocalExecutor, ThisProcess
from autopeft.models.artifact import load
from autopeft.models.merging import merge
from autopeft.outlook import DryRun, dry_run, memory_warning
from autopeft.preparation import PreparedStudy, prepare_study
from autopeft.progress import call_each, show_progress, write_events, write_log
from autopeft.results.result import SearchResult
from autopeft.searching.folder import StudyFolder
from autopeft.searching.loop import SearchLoop
from autopeft.searching.sampler import Sampler
from autopeft.searching.state import read_state
from autopeft.searching.storage import StudyStore
from autopeft.spec.cost import Budget
from autopeft.spec.event import Callback
from autopeft.spec.space import SearchSpace
from autopeft.spec.study import StudySpec, make_study
from autopeft.spec.training import Training
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

    The same call again resumes the study. Ctrl-C ends it cleanly: what runs is checkpointed, and what is
    known is returned.

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
            timeout, study_name, output_dir, sampler, early_stopping, seed and more.

    Raises:
        StudyError, ModelError, DataError, SpaceError, BudgetError, DesignError: What was asked cannot be
            done; raised before anything is trained.
        StudyMismatchError: The study folder holds a study of another model, data set, space or budget.
        StudyLockedError: Another search writes that folder.
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
    folder = StudyFolder(spec.folder)
    if dry:
        with _site(spec) as site:
            return dry_run(prepare_study(spec, data=data, space=space, site=site))
    folder.acquire()
    try:
        with _site(spec) as site:
            study = prepare_study(spec, data=data, space=space, folder=folder, site=site)
            on_ready(study)
            if warning := memory_warning(study):
                logging.getLogger("autopeft").warning(warning)
            _describe(study, folder)
            with (
                write_log(folder.path / "search.log") as log,
                write_events(folder.path / "search.jsonl") as write,
                show_progress(progress) as show,
                _stop_on_signal() as stop,
            ):
                _search(study, folder, call_each((write, show, *callbacks), log), stop, site)
        result = SearchResult(read_state(folder.path), interrupted=stop.is_set())
        result.save()
        return result
    finally:
        folder.release()


def open_study(path: str | Path) -> SearchResult:
    """Look at a study again without searching, also while a search writes it.

    Raises:
        ResultError: The folder holds no study.
    """
    return SearchResult(read_state(path))


def _describe(study: PreparedStudy, folder: StudyFolder) -> None:
    """Write the resolved study file, and what paired comparisons hold predictions against."""
    folder.write_json(folder.description, study.description())
    folder.write_json(folder.predictions("validation", "labels"), study.data.validation.targets.tolist())
    folder.write_json(folder.predictions("test", "labels"), study.data.test.targets.tolist())


@contextmanager
def _site(spec: StudySpec) -> Iterator[Site]:
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


def _executor(study: PreparedStudy, site: Site, should_stop: Callable[[], bool]) -> Executor:
    if isinstance(site, ThisProcess):
        return LocalExecutor(lambda: make_worker(study.worker_setup()), should_stop)
    from autopeft.executors.ray import RayExecutor
    from autopeft.executors.ray_cluster import RayCluster

    assert isinstance(site, RayCluster)
    return RayExecutor(site, make_worker, study.worker_setup(), should_stop)


def _search(study: PreparedStudy, folder: StudyFolder, on_event: Callback, stop: threading.Event, site: Site) -> None:
    plan, spec = study.plan(), study.spec
    store = StudyStore.create(folder.journal, name=spec.study_name, objectives=plan.objectives)
    seed = spec.seed + len(store.records())  # a resumed sampler must not repeat the draws of its first run
    sampler = Sampler(spec.sampler, space=study.space, model=study.model, objectives=plan.objectives, seed=seed)
    store.teach(sampler)

    executor = _executor(study, site, stop.is_set)
    try:
        loop = SearchLoop(
            plan,
            store=store,
            folder=folder,
            sampler=sampler,
            cost_model=study.estimator,
            executor=executor,
            should_stop=stop.is_set,
            on_event=on_event,
        )
        loop.run()
        loop.check_front()
    finally:
        executor.close()


@contextmanager
def _stop_on_signal() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C or SIGTERM into a request to stop; a second one interrupts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(number: int, frame: Any) -> None:
        if stop.is_set():
            signal.default_int_handler(number, frame)
        stop.set()

    previous = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
