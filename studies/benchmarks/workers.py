"""How many trials an hour two workers train on two cores, against one worker.

Each worker has one thread. The same fixed list of trials (LoRA, bottleneck adapter and prefix designs on
all-MiniLM-L6-v2, the quickstart's reviews, each trained in full and evaluated) is run three ways, interleaved:

- two: an executor `ray` with two workers.
- one: an executor `ray` with one worker, so that only the number differs.
- local: this process, no Ray.

Each way is alone on the machine while it runs. The rate is of a steady state: Ray has started, every worker has loaded
its base and has trained each design for two steps. What that takes is reported beside it, and so is the rate from end
to end: starting Ray, making the workers, the first steps, and the trials. At its end it prints three figures: how many
times the trials of one worker two train; what an actor adds to a segment (workers take the time of each of theirs, and
the rest of the way's time passed outside of them, compared with the same rest without Ray); and how long it takes until
two workers have trained their first steps.

    python studies/benchmarks/workers.py --repeats 3 --trials 8
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

# Before torch is loaded: the driver trains with as many threads as a worker.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from machine import cpu_name

from autopeft.executors.base import Executor
from autopeft.executors.local import LocalExecutor
from autopeft.executors.ray import RayExecutor
from autopeft.executors.ray_cluster import RayCluster
from autopeft.spec.design import Design
from autopeft.spec.study import RayOptions
from autopeft.spec.training import Splits, Training
from autopeft.spec.trial import Segment, SegmentResult, SegmentStatus
from autopeft.tasks.prepare import prepare
from autopeft.training.device import choose_training
from autopeft.training.worker import Worker, WorkerSetup

RESULT = Path(__file__).parent / "results" / "workers.json"
QUICKSTART = Path(__file__).parents[1] / "quickstart"
BLOCKS = (
    [{"lora": {"rank": 8, "roles": ["query", "value"]}}],
    [{"adapter": {"size": 16}}],
    [{"lora": {"rank": 4, "roles": "all", "layers": [3, 4, 5]}}],
    [{"prefix": {"length": 8}}, {"lora": {"rank": 2}}],
)
SEGMENT_SECONDS = 5.0
OWN_SECONDS = "own_seconds"
RATES = {"lora": 1e-3, "adapter": 1e-3, "prefix": 1e-2, "head": 1e-3}


class Times(NamedTuple):
    """Seconds of one run.

    Attributes:
        ray: Starting Ray.
        begin: Until as many first short segments are done as there are workers, which are made before.
        first: All first short segments.
        trials: All trials.
        outside: What of that passed outside of the workers, where there is one of them.
    """

    ray: float
    begin: float
    first: float
    trials: float
    outside: float


class TimedWorker(Worker):
    """A worker that says how long each segment took it."""

    def run(self, segment: Segment, should_stop: Callable[[], bool] = lambda: False) -> SegmentResult:
        started = time.perf_counter()
        result = super().run(segment, should_stop)
        return replace(result, scores={**result.scores, OWN_SECONDS: time.perf_counter() - started})


Way = Callable[[], Times]


def timed_worker(setup: WorkerSetup) -> Worker:
    return TimedWorker(setup)


def segments(n: int, *, stop: int = 0) -> list[Segment]:
    """Return the fixed list: designs come in pairs, so that two workers end it at about the same time."""
    designs = [Design.from_dict({"blocks": blocks}) for blocks in BLOCKS]
    return [
        Segment(trial=i, design=designs[i // 2 % len(designs)], learning_rates=RATES, seed=i, stop=stop)
        for i in range(n)
    ]


def run(executor: Executor, waiting: list[Segment]) -> tuple[list[float], float]:
    """Run segments, refilling as workers become free; return when each was done, and the workers' own seconds."""
    started, n_running = time.perf_counter(), 0
    done: list[float] = []
    own_seconds = 0.0
    while waiting or n_running:
        while waiting and executor.free():
            executor.submit(waiting.pop(0))
            n_running += 1
        for result in executor.wait():
            n_running -= 1
            if result.status is not SegmentStatus.DONE:
                raise SystemExit(result.error)
            done.append(time.perf_counter() - started)
            own_seconds += result.scores[OWN_SECONDS]
    return done, own_seconds


def time_ray(setup: WorkerSetup, n_trials: int, n_workers: int) -> Times:
    started = time.perf_counter()
    cluster = RayCluster(RayOptions(cpus_per_worker=1), n_workers=n_workers)
    try:
        assert cluster.n_threads == 1  # starts Ray
        ray_seconds = time.perf_counter() - started
        executor = RayExecutor(cluster, timed_worker, setup, lambda: False)
        try:
            return time_executor(executor, setup, n_trials, ray_seconds)
        finally:
            executor.close()
    finally:
        cluster.close()


def time_local(setup: WorkerSetup, n_trials: int) -> Times:
    executor = LocalExecutor(lambda: timed_worker(setup), lambda: False)
    return time_executor(executor, setup, n_trials, ray_seconds=0.0)


def time_executor(executor: Executor, setup: WorkerSetup, n_trials: int, ray_seconds: float) -> Times:
    # Two steps of each design for every worker: it is made, loads its base, and picks its kernels.
    n_first = len(BLOCKS) * executor.n_workers
    first, _ = run(executor, segments(n_first, stop=2 * setup.training.batch_size))
    trials, own_seconds = run(executor, segments(n_trials))
    return Times(
        ray=ray_seconds,
        begin=first[executor.n_workers - 1],
        first=first[-1],
        trials=trials[-1],
        outside=trials[-1] - own_seconds,
    )


def measure(ways: dict[str, Way], repeats: int) -> dict[str, list[Times]]:
    """Run every way once a repeat; the order rotates, so that drift of the machine meets all alike."""
    results: dict[str, list[Times]] = {name: [] for name in ways}
    names = list(ways)
    for repeat in range(repeats):
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            results[name].append(ways[name]())
            print(f"repeat {repeat + 1}  {name:<6} {results[name][-1].trials:7.1f} s", flush=True)
    return results


def summarize(results: dict[str, list[Times]], n_trials: int) -> dict[str, dict[str, object]]:
    """Return rates from medians, and the median over repeats of the ratio to one worker within each repeat."""
    rows: dict[str, dict[str, object]] = {}
    for name, times in results.items():
        ratios = [one.trials / own.trials for own, one in zip(times, results["one"], strict=True)]
        rows[name] = {
            "seconds": [round(own.trials, 2) for own in times],
            "trials_per_hour": round(3600 * n_trials / statistics.median(own.trials for own in times), 1),
            "ratio_to_one": round(statistics.median(ratios), 2),
            "ray_seconds": round(statistics.median(own.ray for own in times), 2),
            "first_seconds": round(statistics.median(own.first for own in times), 2),
            "trials_per_hour_end_to_end": round(
                3600 * n_trials / statistics.median(own.ray + own.first + own.trials for own in times), 1
            ),
        }
    return rows


def figures(results: dict[str, list[Times]], n_trials: int) -> dict[str, float]:
    """Return the three figures: medians over the repeats, of what ran in the same repeat."""
    ratios = [one.trials / two.trials for one, two in zip(results["one"], results["two"], strict=True)]
    added = [(one.outside - own.outside) / n_trials for one, own in zip(results["one"], results["local"], strict=True)]
    per_trial = statistics.median(own.trials for own in results["local"]) / n_trials
    return {
        "two_workers_to_one": round(statistics.median(ratios), 3),
        "actor_seconds_a_segment": round(statistics.median(added), 4),
        "actor_share_of_5_seconds": round(statistics.median(added) / SEGMENT_SECONDS, 4),
        "seconds_a_segment": round(per_trial, 2),
        "two_workers_start_seconds": round(statistics.median(own.ray + own.begin for own in results["two"]), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--trials", type=int, default=8, help="in the list that every way runs")
    parser.add_argument("--rows", type=int, default=256, help="training examples")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    model = str(QUICKSTART / "model")
    wanted = Training(epochs=1, batch_size=16, max_length=64)
    data = prepare(
        str(QUICKSTART / "reviews.csv"),
        model=model,
        columns={"text": "text", "label": "label", "group": "film"},
        splits=Splits(train=arguments.rows, validation=200, test=50),
        training=wanted,
    )
    choice = choose_training(model, wanted, data)
    print(f"chosen: {choice.training.precision}, {choice.training.kernel}; {os.cpu_count()} cores")
    setup = WorkerSetup(model=model, training=choice.training, data=data)
    ways: dict[str, Way] = {
        "two": lambda: time_ray(setup, arguments.trials, 2),
        "one": lambda: time_ray(setup, arguments.trials, 1),
        "local": lambda: time_local(setup, arguments.trials),
    }
    results = measure(ways, arguments.repeats)
    rows, found = summarize(results, arguments.trials), figures(results, arguments.trials)
    print(f"\n{'way':<7} {'trials/hour':>12} {'/ one':>7} {'start':>9} {'first':>9} {'end to end':>12}")
    for name, row in rows.items():
        print(
            f"{name:<7} {row['trials_per_hour']:>12} {row['ratio_to_one']:>6}x {row['ray_seconds']:>7} s"
            f" {row['first_seconds']:>7} s {row['trials_per_hour_end_to_end']:>12}"
        )
    print(f"\ntwo workers train {found['two_workers_to_one']:.2f} times the trials of one (target: 1.7)")
    print(
        f"an actor adds {1000 * found['actor_seconds_a_segment']:+.0f} ms to a segment of "
        f"{found['seconds_a_segment']:.1f} s: {found['actor_share_of_5_seconds']:+.2%} of 5 s (target: below 2 %)"
    )
    print(
        f"two workers have trained their first steps after {found['two_workers_start_seconds']:.1f} s, "
        "Ray's start included (target: 25 s)"
    )
    record = {
        "schema_version": 1,
        "figures": found,
        "trials": {"n": arguments.trials, "rows": arguments.rows, "epochs": 1, "batch_size": 16, "designs": BLOCKS},
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "threads_per_worker": 1},
        "chosen": {"precision": choice.training.precision, "kernel": choice.training.kernel},
        "versions": {name: version(name) for name in ("autopeft", "torch", "transformers", "peft", "ray")},
        "ways": rows,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(record, indent=2) + "\n")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
