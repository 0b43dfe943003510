"""A driver of a shared study in a process of its own: real loop, sampler and storage, and a worker that sleeps.

    python -m tests.study.driver URL FOLDER N_TRIALS SECONDS N_WORKERS STOPS_AFTER

It writes `begins` and waits for a line, so that several begin at once; then a line `trained TRIAL START STOP` for each
segment that it has trained. After STOPS_AFTER segments (never if negative) it stops in its tracks, while it waits for a
worker.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from autopeft.searching.plan import Baseline, SearchPlan
from autopeft.searching.runner import Runner
from autopeft.searching.samplers.base import make_sampler
from autopeft.searching.trials import unlearned
from autopeft.spec.design import Design
from autopeft.spec.objective import OBJECTIVES
from autopeft.spec.space import SearchSpace
from autopeft.spec.study import EarlyStopping
from autopeft.spec.trial import Segment, SegmentResult
from autopeft.study.folder import StudyFolder
from autopeft.study.store import StudyStore
from tests.bench import FULL, SPACE, CountedCosts, KnownWorker
from tests.conftest import make_summary

OBJECTIVES_HERE = (OBJECTIVES["accuracy"], OBJECTIVES["trainable_params"])
YARDSTICK = Design.from_dict({"blocks": [{"lora": {"rank": 8, "roles": ["query", "value"]}}]})


class ThreadExecutor:
    """Workers that sleep, each in a thread."""

    def __init__(
        self, worker: KnownWorker, seconds: float, n_workers: int, should_stop: Callable[[], bool], stops_after: int
    ) -> None:
        self.n_workers = n_workers
        self._n_until_stop = stops_after
        self._worker, self._seconds, self._should_stop = worker, seconds, should_stop
        self._threads = ThreadPoolExecutor(n_workers)
        self._running: set[Future[SegmentResult]] = set()

    def free(self) -> int:
        return self.n_workers - len(self._running)

    def submit(self, segment: Segment) -> None:
        self._running.add(self._threads.submit(self._train, segment))

    def _train(self, segment: Segment) -> SegmentResult:
        time.sleep(self._seconds)
        result = self._worker.run(segment, self._should_stop)
        print(
            "trained" if segment.stage == "train" else "tested", segment.trial, segment.start, segment.stop, flush=True
        )
        return result

    def wait(self) -> list[SegmentResult]:
        if self._n_until_stop == 0:
            os.kill(os.getpid(), signal.SIGSTOP)  # here it holds nothing of the database
        self._n_until_stop -= 1
        done, self._running = wait(self._running, return_when=FIRST_COMPLETED) if self._running else (set(), set())
        return [future.result() for future in done]

    def now(self) -> float:
        return time.monotonic()

    def close(self) -> None:
        self._threads.shutdown()


def drive(
    url: str,
    folder: Path,
    n_trials: int,
    seconds: float,
    n_workers: int,
    stop: threading.Event,
    *,
    stops_after: int = -1,
) -> None:
    model = make_summary()
    store = StudyStore.create(folder / "study.journal", name="shared", objectives=OBJECTIVES_HERE, storage=url)
    space = SearchSpace.from_dict(SPACE)
    seed = len(store.records()) + store.offset
    sampler = make_sampler("tpe", space=space, model=model, objectives=OBJECTIVES_HERE, seed=seed)
    sampler.update(unlearned(store))
    executor = ThreadExecutor(KnownWorker(model), seconds, n_workers, stop.is_set, stops_after)
    files = StudyFolder(folder)
    files.acquire()
    rates = {"head": 1e-3, "lora": 1e-3}
    plan = SearchPlan(
        objectives=OBJECTIVES_HERE,
        metric=OBJECTIVES_HERE[0],
        limits={"trainable_params": 60_000},
        n_full_examples=FULL,
        n_trials=n_trials,
        halving=EarlyStopping(),
        baselines=(Baseline(name="yardstick", design=YARDSTICK, learning_rates=rates),),
    )
    try:
        loop = Runner(
            plan,
            store=store,
            folder=files,
            sampler=sampler,
            cost_model=CountedCosts(model),
            executor=executor,
            should_stop=stop.is_set,
        )
        loop.run()
        loop.check_front()
    finally:
        executor.close()
        store.close()
        files.release()


def main() -> None:
    url, folder, n_trials, seconds, n_workers, stops_after = sys.argv[1:]
    logging.basicConfig(format="%(levelname)s %(message)s")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    print("begins", flush=True)
    sys.stdin.readline()
    drive(url, Path(folder), int(n_trials), float(seconds), int(n_workers), stop, stops_after=int(stops_after))


if __name__ == "__main__":
    main()
