"""The fast path of cost estimates against the dry run, on random designs of a space.

Parameters, and the bytes of exports, must be equal; of peak memory and FLOPs the relative error is told. The warm-up
measures what the space's designs are made of; then designs that it has not seen are timed.

    python studies/benchmarks/fast_path.py
    python studies/benchmarks/fast_path.py --designs 20 --timed 2000 --models minilm
    python studies/benchmarks/fast_path.py --models llama-3b --designs 10
    python studies/benchmarks/fast_path.py --precision bf16 --models minilm --designs 100 --output /tmp/bf16.json
    python studies/benchmarks/fast_path.py --only-dry-runs

Dry runs are most of the time: those that were made are kept beside the results, and a run that was interrupted goes
on with the next one. Only what the present estimator said is used.
"""

import argparse
import itertools
import json
import os
import platform
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
import transformers
from machine import cpu_name

from autopeft.costs.estimator import Estimator
from autopeft.costs.fast import FastEstimator
from autopeft.models.base import Base, build_meta
from autopeft.spec.cost import Workload
from autopeft.spec.design import Design
from autopeft.spec.model import Head
from autopeft.spec.space import RandomChooser, SearchSpace
from autopeft.spec.training import Precision

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "fast_path.json"
DRY_RUNS = RESULTS.with_name("fast_path_dry_runs.jsonl")
SHAPES = {"minilm": (32, 64), "llama-3b": (4, 512)}
"""Examples of a batch, and tokens of each, by model."""
N_DESIGNS = {"minilm": 500, "llama-3b": 200}
"""Held against their dry run, which takes some seconds for a design of ten techniques on the larger model."""
EXACT = ("trainable_params", "adapter_bytes")
CLOSE = ("peak_memory", "step_flops", "train_flops", "inference_flops")


def build(name: str) -> Base:
    if name == "minilm":
        head = Head(auto_class="AutoModelForSequenceClassification", labels=("negative", "positive"))
        return build_meta(str(ROOT / "quickstart" / "model"), head)
    config = transformers.LlamaConfig(
        hidden_size=3072,
        num_hidden_layers=28,
        num_attention_heads=24,
        num_key_value_heads=8,
        intermediate_size=8192,
        vocab_size=128_256,
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
    )
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        return build_meta(folder, Head(auto_class="AutoModelForCausalLM"), needs_weights=False)


def make_estimator(name: str, precision: Precision, device: str) -> Estimator:
    batch_size, n_tokens = SHAPES[name]
    workload = Workload.uniform(batch_size=batch_size, n_tokens=n_tokens)
    return Estimator(build(name), workload=workload, precision=precision, kernel="sdpa", device=device, n_threads=1)


def draw(space: SearchSpace, base: Base, seed: int) -> Iterator[Design]:
    chooser = RandomChooser(random.Random(seed))
    while True:
        drawn = space.draw(chooser, base.summary)
        if not drawn.violation:
            yield drawn.design


def dry_runs(name: str, estimator: Estimator, designs: list[Design]) -> list[dict[str, Any]]:
    """Return what dry runs of designs say, each made once."""
    machine = estimator.machine
    of = [name, machine.precision, machine.device, Estimator.version]
    known: dict[str, dict[str, Any]] = {}
    if DRY_RUNS.is_file():
        for row in map(json.loads, DRY_RUNS.read_text(encoding="utf-8").splitlines()):
            if row["of"] == of:
                known[row["key"]] = row
    rows = []
    DRY_RUNS.parent.mkdir(exist_ok=True)
    with DRY_RUNS.open("a", encoding="utf-8") as file:
        for number, design in enumerate(designs, start=1):
            if design.key not in known:
                estimate = estimator(design)
                costs = {cost: estimate.cost(cost) for cost in (*EXACT, *CLOSE)}
                known[design.key] = {"of": of, "key": design.key, **costs}
                file.write(json.dumps(known[design.key]) + "\n")
                file.flush()
                print(f"{name:9} dry run {number} of {len(designs)}  {design.describe()}", flush=True)
            rows.append(known[design.key])
    return rows


def timing(estimator: Estimator, space: SearchSpace, n_timed: int) -> tuple[FastEstimator, dict[str, Any]]:
    started = time.perf_counter(), time.process_time()
    fast = FastEstimator(estimator)
    fast.learn(fast.draw(space))
    warm_up_seconds, warm_up_cpu_seconds = time.perf_counter() - started[0], time.process_time() - started[1]
    fresh = list(itertools.islice(draw(space, estimator.base("none"), seed=1), n_timed))
    started = time.perf_counter(), time.process_time()
    answers = [fast(design) for design in fresh]
    seconds, cpu_seconds = time.perf_counter() - started[0], time.process_time() - started[1]
    return fast, {
        "warm_up_seconds": warm_up_seconds,
        "warm_up_cpu_seconds": warm_up_cpu_seconds,
        "n_timed": n_timed,
        "designs_per_second": n_timed / seconds,
        "designs_per_cpu_second": n_timed / cpu_seconds,
        "fast_share": sum(answer.source == "fast" for answer in answers) / n_timed,
        "dry_run_because": dict(Counter(answer.reason for answer in answers if answer.reason)),
    }


def accuracy(fast: FastEstimator, designs: list[Design], rows: list[dict[str, Any]]) -> dict[str, Any]:
    errors: dict[str, list[float]] = {cost: [] for cost in CLOSE}
    wrong = dict.fromkeys(EXACT, 0)
    for design, row in zip(designs, rows, strict=True):
        told = fast(design)
        for cost in EXACT:
            wrong[cost] += getattr(told, cost) != row[cost]
        for cost in CLOSE:
            errors[cost].append(getattr(told, cost) / row[cost] - 1 if row[cost] else 0.0)
        peak = f"{row['peak_memory'] / 2**20:10.1f} MiB {errors['peak_memory'][-1]:+8.2%}"
        print(f"{peak}  FLOP {errors['step_flops'][-1]:+8.2%}  {design.describe()}")
    found: dict[str, Any] = {"n_designs": len(designs), **{f"wrong_{cost}": count for cost, count in wrong.items()}}
    for cost, each in errors.items():
        sizes = np.abs(each)
        found[cost] = {
            "median_error": float(np.median(sizes)),
            "p95_error": float(np.quantile(sizes, 0.95)),
            "worst_error": float(sizes.max()),
            "mean_signed_error": float(np.mean(each)),
        }
    return found


def measure(
    name: str, estimator: Estimator, space: SearchSpace, *, n_designs: int, n_timed: int, only_dry_runs: bool
) -> dict[str, Any]:
    batch_size, n_tokens = SHAPES[name]
    designs = list(itertools.islice(draw(space, estimator.base("none"), seed=2), n_designs))
    if only_dry_runs:
        return {"n_designs": len(dry_runs(name, estimator, designs))}
    fast, timed = timing(estimator, space, n_timed)
    found = accuracy(fast, designs, dry_runs(name, estimator, designs))
    return {"batch_size": batch_size, "n_tokens": n_tokens, **timed, **found}


def show(found: dict[str, Any], indent: str = "  ") -> None:
    for key, value in found.items():
        if isinstance(value, dict):
            print(f"{indent}{key}")
            show(value, f"{indent}  ")
        else:
            print(f"{indent}{key:24} {f'{value:.3%}' if key.endswith('error') else f'{value:,.6g}'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=tuple(SHAPES), default=["minilm", "llama-3b"])
    parser.add_argument(
        "--designs", type=int, help=f"designs that are held against their dry run; by model {N_DESIGNS}"
    )
    parser.add_argument("--timed", type=int, default=5000, help="fresh designs that are timed")
    parser.add_argument("--space", default="hybrid-full")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="that designs would train on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only-dry-runs", action="store_true", help="make the dry runs, and compare nothing yet")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    space = SearchSpace.load(options.space)
    how = {"n_timed": options.timed, "only_dry_runs": options.only_dry_runs}
    found = {}
    for name in options.models:
        estimator = make_estimator(name, options.precision, options.device)
        found[name] = measure(name, estimator, space, n_designs=options.designs or N_DESIGNS[name], **how)
    for name, result in found.items():
        print(f"\n{name}")
        show(result)
    if options.only_dry_runs:
        return
    packages = ("torch", "transformers", "peft", "bitsandbytes")
    record = {
        "cpu": cpu_name(),
        "threads": options.threads,
        "precision": options.precision,
        "device": options.device,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "estimator": Estimator.version,
        "space": options.space,
        "models": found,
    }
    options.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"\nwritten to {options.output}")


if __name__ == "__main__":
    main()
