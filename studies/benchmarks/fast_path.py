"""The fast path of cost estimates against the dry run, on random designs of a space.

Random designs as searches draw them. Parameters must be equal; of peak memory the relative error is told. The warm-up
measures what the space's designs are made of; then designs that it has not seen are timed.

    python studies/benchmarks/fast_path.py
    python studies/benchmarks/fast_path.py --designs 20 --timed 2000 --models minilm
    python studies/benchmarks/fast_path.py --models llama-3b --designs 10
"""

import argparse
import json
import os
import platform
import random
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
import transformers
from machine import cpu_name

from autopeft.estimation.estimator import Estimator
from autopeft.estimation.fast import FastEstimator
from autopeft.models.base import Base, build_meta
from autopeft.models.loading import Head
from autopeft.spec.cost import Workload
from autopeft.spec.design import Design
from autopeft.spec.space import RandomChooser, SearchSpace

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "fast_path.json"
SHAPES = {"minilm": (32, 64), "llama-3b": (4, 512)}
"""Examples of a batch, and tokens of each, by model."""


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


def draw(space: SearchSpace, base: Base, n_designs: int, seed: int) -> list[Design]:
    chooser, designs = RandomChooser(random.Random(seed)), list[Design]()
    while len(designs) < n_designs:
        drawn = space.draw(chooser, base.summary)
        if not drawn.violation:
            designs.append(drawn.design)
    return designs


def measure(name: str, space: SearchSpace, *, n_designs: int, n_timed: int) -> dict[str, Any]:
    base = build(name)
    batch_size, n_tokens = SHAPES[name]
    workload = Workload.uniform(batch_size=batch_size, n_tokens=n_tokens)
    estimator = Estimator(base, workload=workload, precision="fp32", kernel="sdpa", device="cpu")
    started = time.perf_counter()
    fast = FastEstimator(estimator)
    fast.warm_up(space)
    warm_up_seconds = time.perf_counter() - started
    fresh = draw(space, base, n_timed, seed=1)
    started = time.perf_counter()
    answers = [fast(design) for design in fresh]
    seconds = time.perf_counter() - started
    errors, wrong = [], 0
    for design in draw(space, base, n_designs, seed=2):
        told, full = fast(design), estimator(design)
        wrong += told.trainable_params != full.trainable_params
        errors.append(told.peak_memory / full.peak_memory - 1)
        print(f"{name:9} {full.peak_memory / 2**20:10.1f} MiB {errors[-1]:+8.2%}  {design.describe()}", flush=True)
    sizes = np.abs(errors)
    return {
        "batch_size": batch_size,
        "n_tokens": n_tokens,
        "warm_up_seconds": warm_up_seconds,
        "n_timed": n_timed,
        "designs_per_second": n_timed / seconds,
        "fast_share": sum(answer.source == "fast" for answer in answers) / n_timed,
        "n_designs": n_designs,
        "wrong_parameters": wrong,
        "median_error": float(np.median(sizes)),
        "p95_error": float(np.quantile(sizes, 0.95)),
        "worst_error": float(sizes.max()),
        "mean_error": float(np.mean(errors)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=tuple(SHAPES), default=["minilm", "llama-3b"])
    parser.add_argument("--designs", type=int, default=500, help="designs that are held against their dry run")
    parser.add_argument("--timed", type=int, default=5000, help="fresh designs that are timed")
    parser.add_argument("--space", default="hybrid-full")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    space = SearchSpace.load(options.space)
    found = {name: measure(name, space, n_designs=options.designs, n_timed=options.timed) for name in options.models}
    for name, result in found.items():
        print(f"\n{name}")
        for key, value in result.items():
            print(f"  {key:20} {value:.3%}" if key.endswith("error") else f"  {key:20} {value:,.6g}")
    packages = ("torch", "transformers", "peft", "bitsandbytes")
    record = {
        "cpu": cpu_name(),
        "threads": options.threads,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "estimator": Estimator.version,
        "space": options.space,
        "models": found,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"\nwritten to {RESULTS.name} in {RESULTS.parent.name}")


if __name__ == "__main__":
    main()
