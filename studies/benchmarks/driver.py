"""How far one driver goes: 1,000 workers and 10,000 trials of a minute each, without the minutes.

The workers are simulated, with a virtual clock that the driver's own seconds advance: while it is slow, workers wait.
Everything else is the search as it is: proposals in the space `hybrid` on MiniLM, a budget, the record in a journal,
and durable files. What is simulated besides:

- a trial takes a minute on the virtual clock, give or take a tenth, or exactly that (with early stopping, a full one);
- its checkpoint has the size of the adapter's weights, with Adam's two moments unless it trained in full, and is
  written and synced, as is the adapter; the bytes mean nothing;
- costs are counted by a formula, not by a dry run: `fast_path.py` times those;
- results do not travel over a network.

    python studies/benchmarks/driver.py                  # four searches, then seconds of an ask
    python studies/benchmarks/driver.py --only even --output studies/benchmarks/results/driver_even.json
    python studies/benchmarks/driver.py --only random tpe asks
    python studies/benchmarks/driver.py --trials 1000 --workers 100
"""

import argparse
import hashlib
import heapq
import json
import math
import os
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial, wraps
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from machine import cpu_name

from autopeft.executors.simulated import SimulatedExecutor
from autopeft.models.base import build_meta
from autopeft.searching.halving import Halving
from autopeft.searching.plan import SearchPlan
from autopeft.searching.runner import Runner
from autopeft.searching.samplers.base import Observation, make_sampler
from autopeft.searching.samplers.optuna_sampler import OptunaSampler
from autopeft.searching.table import TrialTable
from autopeft.spec.cost import Estimate, Measured
from autopeft.spec.design import Design
from autopeft.spec.model import Head, ModelSummary
from autopeft.spec.objective import find_objective
from autopeft.spec.space import SearchSpace
from autopeft.spec.study import EarlyStopping
from autopeft.spec.trial import Outcome, Segment, SegmentResult, SegmentStatus, TrialRecord
from autopeft.study import segment_files
from autopeft.study.folder import StudyFolder
from autopeft.study.store import StudyStore

PARTS = ("even", "random", "stopping", "tpe", "asks")
RESULTS = Path(__file__).parent / "results" / "driver.json"
MODEL = Path(__file__).parents[1] / "quickstart" / "model"
OBJECTIVES = tuple(find_objective(name) for name in ("accuracy", "trainable_params"))
TRIAL_SECONDS = 60.0
FULL = 10_000
"""Examples of a full training."""
MOST_PARAMETERS = 230_000
"""The budget: a hundredth of MiniLM."""


class KnownCosts:
    """Counts what blocks train by a formula: enough to tell designs apart."""

    def __init__(self, model: ModelSummary) -> None:
        self._model = model

    def trainable_params(self, design: Design) -> int:
        sizes = [1 if block.size_field is None else getattr(block, block.size_field) for block in design.blocks]
        n_layers = [len(block.layer_indices(self._model)) for block in design.blocks]
        return self._model.n_head_parameters + sum(768 * s * n for s, n in zip(sizes, n_layers, strict=True))

    def lower_bound(self, design: Design) -> dict[str, int]:
        return {"trainable_params": self.trainable_params(design)}

    def __call__(self, design: Design) -> Estimate:
        n = self.trainable_params(design)
        return Estimate(
            trainable_params=n,
            head_params=self._model.n_head_parameters,
            adapter_bytes=4 * n,
            base_bytes=4 * self._model.n_parameters,
            peak_memory=10**8 + 16 * n,
            train_flops=10**12 + n,
            inference_flops=10**6 + n,
            serving=design.serving(self._model),
            version="by a formula",
        )


class KnownWorker:
    """Answers with a quality that grows with length and size, and files of the size that real ones have."""

    def __init__(self, costs: KnownCosts, seconds: Callable[[Segment], float]) -> None:
        self._costs = costs
        self._seconds = seconds
        self._bytes = random.Random(0).randbytes(12 * 2 * MOST_PARAMETERS)

    def run(self, segment: Segment, should_stop: Callable[[], bool]) -> SegmentResult:
        n = self._costs.trainable_params(segment.design)
        full = segment.stop >= segment.full
        noise = int(hashlib.sha256(segment.design.key.encode()).hexdigest(), 16) % 1000 / 1e4
        return SegmentResult(
            trial=segment.trial,
            status=SegmentStatus.DONE,
            examples=segment.stop,
            scores={"accuracy": 0.4 + 0.04 * math.log10(n) * segment.stop / segment.full + noise, "loss": 1.0},
            standard_errors={"accuracy": 0.01, "loss": 0.01},
            measured=Measured(train_seconds=self._seconds(segment), evaluation_seconds=0.5, n_steps=1, n_tokens=1),
            checkpoint=self._bytes[: 4 * n if full else 12 * n],
            artifact={"autopeft.json": b"{}" * 500, "adapter.safetensors": self._bytes[: 4 * n]} if full else {},
            predictions=(0.0, 1.0) * 250,
        )


def segment_seconds(segment: Segment, *, spread: float) -> float:
    """Return what a segment takes, which is the same for the same trial: its share of a minute, give or take a part."""
    jitter = random.Random(segment.trial).uniform(1 - spread, 1 + spread)
    return TRIAL_SECONDS * jitter * (segment.stop - segment.start) / FULL


class Stopwatch:
    """Adds up the seconds of each part of the driver; what a part calls of another part is not counted twice."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._stack: list[str] = ["the loop itself"]
        self._since = time.perf_counter()

    def _switch(self) -> None:
        now = time.perf_counter()
        self.seconds[self._stack[-1]] += now - self._since
        self._since = now

    def wrap(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._switch()
            self._stack.append(part)
            try:
                return function(*args, **kwargs)
            finally:
                self._switch()
                self._stack.pop()

        return timed

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Time the parts while the context lasts; not safe for threads, which the parts are not called from."""
        places: list[tuple[Any, str, str]] = [
            (OptunaSampler, "suggest", "ask"),
            (OptunaSampler, "update", "tell"),
            *((KnownCosts, name, "estimate (by a formula)") for name in ("__call__", "lower_bound")),
            *((StudyStore, name, "record") for name in ("add", "update", "set_fact", "fact", "parameters")),
            *((StudyStore, name, "record") for name in ("part", "set_part")),
            (segment_files, "_at_once", "checkpoints and adapters, synced"),
            *((TrialTable, name, "rungs, calibration, forecast") for name in ("put", "progress")),
            *((Halving, name, "rungs, calibration, forecast") for name in ("next_job", "on_result")),
            (KnownWorker, "run", "(simulated workers)"),
        ]
        places = [(owner, name, part) for owner, name, part in places if hasattr(owner, name)]
        before = [
            owner.__dict__[name] if isinstance(owner, type) else getattr(owner, name) for owner, name, _ in places
        ]
        journal = StudyStore.together

        @contextmanager
        def together(store: StudyStore) -> Iterator[None]:
            context = journal(store)
            context.__enter__()
            try:
                yield
            finally:
                self.wrap(context.__exit__, "journal, synced")(None, None, None)

        StudyStore.together = together  # type: ignore[method-assign, assignment]
        for (owner, name, part), function in zip(places, before, strict=True):
            setattr(owner, name, self.wrap(function, part))
        self._since = time.perf_counter()
        try:
            yield
        finally:
            self._switch()
            StudyStore.together = journal  # type: ignore[method-assign]
            for (owner, name, _), function in zip(places, before, strict=True):
                setattr(owner, name, function)


def search(
    model: ModelSummary,
    *,
    sampler: str,
    n_trials: int,
    n_workers: int,
    spread: float = 0.1,
    halving: EarlyStopping | None = None,
) -> dict[str, Any]:
    """Run one search and say what came of it."""
    costs, watch = KnownCosts(model), Stopwatch()
    with tempfile.TemporaryDirectory(prefix="autopeft-driver-") as path:
        folder = StudyFolder(Path(path) / "study")
        store = StudyStore.create(folder.journal, name="driver", objectives=OBJECTIVES)
        takes: list[float] = []
        seconds = partial(segment_seconds, spread=spread)

        def timed(segment: Segment) -> float:
            takes.append(seconds(segment))
            return takes[-1]

        executor = SimulatedExecutor(KnownWorker(costs, seconds), timed, n_workers=n_workers, with_real_time=True)
        started = time.perf_counter(), time.process_time()
        with watch.watching():
            loop = Runner(
                SearchPlan(
                    objectives=OBJECTIVES,
                    metric=OBJECTIVES[0],
                    limits={"trainable_params": MOST_PARAMETERS},
                    n_full_examples=FULL,
                    n_trials=n_trials,
                    halving=halving,
                    test=False,
                ),
                store=store,
                folder=folder,
                sampler=make_sampler(
                    sampler, space=SearchSpace.load("hybrid"), model=model, objectives=OBJECTIVES, seed=0
                ),
                cost_model=costs,
                executor=executor,
            )
            loop.run()
            makespan = executor.now()
        real, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
        outcomes = Counter(record.outcome for record in store.records())
        n_bytes = sum(file.stat().st_size for file in folder.path.rglob("*") if file.is_file())
    simulated = watch.seconds.pop("(simulated workers)", 0.0)
    return {
        "sampler": sampler,
        "early_stopping": halving is not None,
        "spread": spread,
        "n_trials": n_trials,
        "n_workers": n_workers,
        "real_seconds": round(real, 1),
        "simulated_workers_seconds": round(simulated, 1),
        "cpu_seconds": round(cpu, 1),
        "virtual_makespan_seconds": round(makespan, 1),
        "busy": round(executor.busy_seconds / (n_workers * makespan), 4),
        "busy_with_an_instant_driver": round(instant_busy(takes, n_workers), 4),
        "ms_a_trial": {part: round(1000 * s / n_trials, 3) for part, s in watch.seconds.most_common()},
        "outcomes": {outcome.value: outcomes[outcome] for outcome in Outcome if outcomes[outcome]},
        "gigabytes_left": round(n_bytes / 1e9, 2),
    }


def instant_busy(takes: Sequence[float], n_workers: int) -> float:
    """Return how busy workers are with the same segments where each gets its next one at once: the last ones end apart.

    Args:
        takes: Seconds of each segment, in the order in which they went out.
        n_workers: Workers.
    """
    ends = [0.0] * n_workers
    for seconds in takes:
        heapq.heapreplace(ends, ends[0] + seconds)
    return sum(takes) / (n_workers * max(ends))


def ask_seconds(model: ModelSummary, sampler: str, n_known: int, repeats: int = 20) -> float:
    """Return the median CPU seconds of a proposal where so many trials are known."""
    space, numbers = SearchSpace.load("hybrid"), random.Random(0)
    source = make_sampler("random", space=space, model=model, objectives=OBJECTIVES, seed=1)
    asked = make_sampler(sampler, space=space, model=model, objectives=OBJECTIVES, seed=0)
    for number in range(n_known):
        (known,) = source.suggest()
        done = Observation(
            params=known.params, distributions=known.distributions, lesson="nothing", ticket=known.ticket
        )
        source.update([done])
        record = None
        if number % 2:
            design, n = known.draw.design, round(10 ** numbers.uniform(3, 6))
            record = TrialRecord(
                number=number,
                design=design,
                learning_rates=known.draw.learning_rates,
                seed=0,
                outcome=Outcome.COMPLETE,
                estimate=replace(KnownCosts(model)(design), trainable_params=n),
                scores={"accuracy": numbers.random()},
            )
        asked.update([replace(done, lesson="complete" if record else "worse", record=record, ticket=None)])
    asked.suggest()  # the first one may thin out what is known
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        asked.suggest()
        seconds.append(time.process_time() - started)
    return statistics.median(seconds)


def show(row: dict[str, Any]) -> None:
    stopping = "early stopping" if row["early_stopping"] else "all in full"
    print(
        f"\n{row['sampler']}, {stopping}, a minute ± {row['spread']:.0%}: "
        f"{row['n_trials']:,} trials, {row['n_workers']:,} workers: "
        f"{row['real_seconds']:.0f} s real ({row['simulated_workers_seconds']:.0f} s of it the simulated workers'), "
        f"{row['virtual_makespan_seconds']:.0f} s virtual, workers {row['busy']:.1%} busy "
        f"({row['busy_with_an_instant_driver']:.1%} if the driver took no time), "
        f"{row['gigabytes_left']} GB written and kept"
    )
    for part, milliseconds in row["ms_a_trial"].items():
        print(f"  {milliseconds:8.2f} ms a trial  {part}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--tpe-trials", type=int, default=2000)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    head = Head(auto_class="AutoModelForSequenceClassification", labels=("negative", "positive"))
    model = build_meta(str(MODEL), head).summary
    searches: dict[str, dict[str, Any]] = {
        "even": {"sampler": "random", "n_trials": arguments.trials, "spread": 0.0},
        "random": {"sampler": "random", "n_trials": arguments.trials},
        "stopping": {"sampler": "random", "n_trials": arguments.trials, "halving": EarlyStopping()},
        "tpe": {"sampler": "tpe", "n_trials": min(arguments.tpe_trials, arguments.trials)},
    }
    wanted = [name for name in searches if name in arguments.only]
    rows = []
    for name in wanted:
        rows.append(search(model, n_workers=arguments.workers, **searches[name]))
        show(rows[-1])
    asks: dict[str, dict[str, float]] = {}
    if "asks" in arguments.only:
        sizes = (100, 1000, 10_000)
        print(f"\n{'CPU ms of an ask at':<20}" + "".join(f"{size:>10,}" for size in sizes) + "  known trials")
        for sampler in ("random", "nsga2", "tpe"):
            asks[sampler] = {str(size): round(1000 * ask_seconds(model, sampler, size), 2) for size in sizes}
            print(f"{sampler:<20}" + "".join(f"{milliseconds:>10.1f}" for milliseconds in asks[sampler].values()))
    record = {
        "schema_version": 1,
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("autopeft", "optuna", "torch")},
        "trial_seconds": TRIAL_SECONDS,
        "searches": rows,
        "ask_cpu_milliseconds": asks,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(record, indent=2) + "\n")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
