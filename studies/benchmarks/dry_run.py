"""Seconds and memory of the full estimate of a design, in a fresh process with one thread.

LoRA of rank 8 on all roles of every layer, in bf16 with a batch of 4 x 512 tokens. Seconds are those of the first
estimate from a configuration (building the model on the meta device, attaching, a step of training, one of evaluation
and, of a language model, the writing of samples), without imports; those of a second design, LoRA of rank 16, follow.
Memory is the process's highest resident set.

    python studies/benchmarks/dry_run.py
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}

from machine import cpu_name

RESULTS = Path(__file__).parent / "results" / "dry_run.json"
LLAMA = {"max_position_embeddings": 2048, "pad_token_id": 0}


def _llama(hidden: int, layers: int, heads: int, shared: int, inner: int, vocabulary: int, tied: bool) -> object:
    import transformers

    return transformers.LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        intermediate_size=inner,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        **LLAMA,
    )


LLAMAS = {
    "SmolLM2-135M": (576, 30, 9, 3, 1536, 49152, True),
    "3B": (3072, 28, 24, 8, 8192, 128256, True),
    "70B": (8192, 80, 64, 8, 28672, 128256, False),
}
MODELS = ("MiniLM", *LLAMAS)


def _measure(name: str, quantization: str, kernel: str) -> dict[str, float]:
    """Estimate once in this process."""
    import peft  # noqa: F401  # imports are not what is measured
    import torch
    import transformers

    from autopeft.costs.estimator import Estimator
    from autopeft.models.base import build_meta
    from autopeft.spec.cost import Workload
    from autopeft.spec.design import Design
    from autopeft.spec.model import Head

    torch.set_num_threads(1)
    is_llama = name in LLAMAS
    config = (
        _llama(*LLAMAS[name])
        if is_llama
        else transformers.BertConfig(
            hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
        )
    )
    head = (
        Head(auto_class="AutoModelForCausalLM")
        if is_llama
        else Head(auto_class="AutoModelForSequenceClassification", labels=("negative", "positive"))
    )
    workload = Workload.uniform(batch_size=4, n_tokens=512)
    first, second = (
        Design.from_dict({"quantization": quantization, "blocks": [{"lora": {"rank": rank}}]}) for rank in (8, 16)
    )
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)  # type: ignore[attr-defined]
        started, started_cpu = time.perf_counter(), time.process_time()
        base = build_meta(folder, head, kernel=kernel, needs_weights=False)  # type: ignore[arg-type]
        estimator = Estimator(
            base,
            workload=workload,
            precision="bf16",
            kernel=kernel,
            device="cpu",
            n_threads=1,  # type: ignore[arg-type]
        )
        estimate = estimator(first)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - started_cpu
        started = time.perf_counter()
        estimator(second)
        second_seconds = time.perf_counter() - started
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "second_seconds": second_seconds,
        "resident_bytes": resident,
        "peak_memory": estimate.peak_memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="processes per row; the median counts")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(_measure(*options.one)))
        return
    print("model          base  kernel  seconds  cpu s  second  resident  estimate   (GiB)")
    rows = []
    for name in options.models:
        for quantization in ("none", "nf4"):
            for kernel in ("sdpa", "eager"):
                command = [sys.executable, __file__, "--one", name, quantization, kernel]
                runs = [
                    json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                    for _ in range(options.repeats)
                ]
                row = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
                rows.append({"model": name, "quantization": quantization, "kernel": kernel, **row})
                print(
                    f"{name:14} {quantization:5} {kernel:6} {row['seconds']:8.2f} {row['cpu_seconds']:6.2f} "
                    f"{row['second_seconds']:7.2f} "
                    f"{row['resident_bytes'] / 2**30:9.2f} {row['peak_memory'] / 2**30:9.2f}",
                    flush=True,
                )
    packages = ("torch", "transformers", "peft", "bitsandbytes")
    record = {
        "cpu": cpu_name(),
        "threads": 1,
        "repeats": options.repeats,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "rows": rows,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"written to {RESULTS.relative_to(Path.cwd()) if RESULTS.is_relative_to(Path.cwd()) else RESULTS}")


if __name__ == "__main__":
    main()
