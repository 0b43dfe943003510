"""A real search in a process of its own, with real time and without a model: what a fault is done to.

The process is forked, so that twenty of them cost no twenty imports.
"""

import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import optuna

from autopeft.cli.base import explain_errors
from autopeft.executors.base import Executor
from autopeft.executors.local import LocalExecutor
from autopeft.interruption import on_signals
from autopeft.searching.plan import SearchPlan
from autopeft.searching.runner import Runner
from autopeft.searching.samplers.base import make_sampler
from autopeft.searching.trials import MAX_KILLS
from autopeft.spec.model import ModelSummary
from autopeft.spec.space import SearchSpace
from autopeft.spec.study import EarlyStopping
from autopeft.spec.trial import Outcome, Segment, SegmentResult, TrialRecord
from autopeft.study.folder import StudyFolder
from autopeft.study.front import pareto_front
from autopeft.study.store import StudyStore
from tests.bench import FULL, SPACE, Bench, CountedCosts, KnownWorker
from tests.conftest import started

FORK = multiprocessing.get_context("fork")
SearchSpace.from_dict(SPACE)  # imports what spaces need here, once, and not in each process


class Steady(KnownWorker):
    """Takes its time, and ends early when it is asked to."""

    seconds = 0.02

    def run(self, segment: Segment, should_stop: Callable[[], bool]) -> SegmentResult:
        time.sleep(self.seconds)
        return super().run(segment, should_stop)


def search(location: str | Path, model: ModelSummary, **options: object) -> None:
    """Run a search as `autopeft.api.run_study` does, but for the model."""
    with a_search(location, model, **options) as loop:
        loop.run()
        loop.check_front()


@contextmanager
def a_search(
    location: str | Path,
    model: ModelSummary,
    *,
    n_trials: int = 12,
    work_dir: str | None = None,
    worker: KnownWorker | None = None,
    grace_seconds: float = 25.0,
    timeout_seconds: float | None = None,
    make_executor: Callable[[Callable[[], bool]], Executor] | None = None,
) -> Iterator[Runner]:
    folder = StudyFolder.at(location, work_dir)
    bench = Bench(folder.path, model)
    worker = worker or Steady(model)
    folder.acquire()
    try:
        with on_signals(grace_seconds) as stop:
            store = StudyStore.create(folder.journal, name="test", objectives=bench.objectives)
            if folder.read_description() is None:
                folder.write_json(folder.description, {"schema_version": 1})
            seed = len(store.records())
            sampler = make_sampler("random", space=bench.space, model=model, objectives=bench.objectives, seed=seed)
            plan = SearchPlan(
                objectives=bench.objectives,
                metric=bench.objectives[0],
                limits={},
                n_full_examples=FULL,
                n_trials=n_trials,
                timeout_seconds=timeout_seconds,
                halving=EarlyStopping(),
                seed=0,
                test=True,
            )
            if make_executor is None:
                executor: Executor = LocalExecutor(lambda: worker, stop.is_set)
            else:
                executor = make_executor(stop.is_set)
            yield Runner(
                plan,
                store=store,
                folder=folder,
                sampler=sampler,
                cost_model=CountedCosts(model),
                executor=executor,
                should_stop=stop.is_set,
            )
            executor.close()
    finally:
        folder.release()


def start(location: str | Path, model: ModelSummary, **options: object) -> BaseProcess:
    """Start a search in another process, which ends as the command line does."""
    process = FORK.Process(target=explain_errors(search), args=(location, model), kwargs=options)
    process.start()
    return process


def kill(process: BaseProcess, number: int = signal.SIGKILL) -> None:
    """Send a signal to a process that runs."""
    assert process.pid is not None
    if process.is_alive():
        os.kill(process.pid, number)


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "what was waited for did not come"
        time.sleep(0.002)


def wait_for_size(process: BaseProcess, journal: Path, n_bytes: int) -> None:
    """Wait until a journal is so large, or who writes it has ended."""
    wait_for(lambda: not process.is_alive() or (journal.is_file() and journal.stat().st_size >= n_bytes))


def records(path: Path, model: ModelSummary) -> tuple[TrialRecord, ...]:
    """Return what the record of a study says, as any reader finds it."""
    bench = Bench(path, model)
    return StudyStore.read(bench.folder.journal, name="test", objectives=bench.objectives).records()


def complete(trials: tuple[TrialRecord, ...]) -> dict[int, TrialRecord]:
    return {trial.number: trial for trial in trials if trial.outcome is Outcome.COMPLETE}


def check_whole(path: Path, model: ModelSummary, *, n_trials: int) -> tuple[TrialRecord, ...]:
    """Check what is true of every study that was searched to its end, whatever has happened to it on the way."""
    trials = records(path, model)
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert not [trial for trial in trials if trial.outcome is Outcome.RUNNING]
    assert len(started(trials)) == n_trials
    continued = Counter(t.continues for t in trials if t.continues is not None)
    assert max(continued.values(), default=1) == 1, "a trial goes on once"
    ended = [t for t in trials if t.number not in continued]
    given_up = [t for t in ended if t.n_kills >= MAX_KILLS]  # whoever kills at random may well meet one so often
    assert {t.outcome for t in given_up} <= {Outcome.FAILED}
    assert {t.outcome for t in ended if t not in given_up} <= {Outcome.COMPLETE, Outcome.STOPPED, Outcome.INFEASIBLE}
    twice = Counter(
        (t.design.key, tuple(sorted(t.learning_rates.items()))) for t in trials if t.outcome is Outcome.COMPLETE
    )
    assert max(twice.values()) == 1, "no design is trained in full twice"
    folder = StudyFolder(path)
    for trial in complete(trials).values():
        assert trial.examples == FULL
        assert (folder.adapter(trial.number) / "autopeft.json").is_file()
        assert folder.predictions("validation", trial.number).is_file()
    front = pareto_front(trials, Bench(path, model).objectives)
    assert front
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder.journal)))
    study = optuna.load_study(study_name="test", storage=storage)
    assert {f"tests/{t.number}" for t in front} <= set(study.user_attrs), "the front has had its final check"
    assert len(study.trials) == len(trials)
    return trials
