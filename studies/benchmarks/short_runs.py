"""Short trainings of many designs on two packaged models, written down one by one: a killed benchmark goes on.

- MiniLM: all-MiniLM-L6-v2 classifies Rotten Tomatoes snippets (studies/quickstart).
- SmolLM2: SmolLM2-135M-Instruct writes them, the loss is on the review alone (studies/smollm2).
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import transformers
from machine import cpu_name_with_units

from autopeft.errors import AutopeftError
from autopeft.models.attach import attach
from autopeft.models.base import Base, build_meta
from autopeft.spec.design import Design
from autopeft.spec.learning_rates import HEAD, default_learning_rate
from autopeft.spec.training import Splits, Training
from autopeft.spec.trial import Segment, SegmentStatus
from autopeft.tasks.base import PreparedData, find_task
from autopeft.tasks.prepare import prepare
from autopeft.training.worker import Worker, WorkerSetup

STUDIES = Path(__file__).parents[1]
PACKAGES = ("autopeft", "torch", "transformers", "peft", "bitsandbytes")
FRESH_WORKER_AFTER = 40
"""Runs after which a worker is made anew, so that nothing can pile up."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A model with its data, and how long a training is.

    Attributes:
        score: The metric that a table shows.
        n_train: Examples of the training split.
    """

    name: str
    folder: str
    data: str
    task: str
    columns: Mapping[str, str]
    score: str
    n_train: int
    n_validation: int
    epochs: float
    batch_size: int
    max_length: int

    @property
    def training(self) -> Training:
        """Return precision and kernel too: those that every processor has, fixed so that runs compare."""
        return Training(
            epochs=self.epochs,
            batch_size=self.batch_size,
            evaluation_batch_size=2 * self.batch_size,
            max_length=self.max_length,
            precision="fp32",
            kernel="sdpa",
            device="cpu",
        )

    def describe(self) -> dict[str, Any]:
        """Return what a run depends on besides the design and the rate."""
        return {
            "model": self.name,
            "train": self.n_train,
            "validation": self.n_validation,
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "max_length": self.max_length,
        }


@dataclass
class Runner:
    """Trains designs in one setting."""

    setting: Setting
    _n_runs: int = field(default=0, init=False)

    @cached_property
    def data(self) -> PreparedData:
        """Return the tokenized data."""
        test = 16  # read by nothing here, but a split must have something
        splits = Splits(train=self.setting.n_train, validation=self.setting.n_validation, test=test)
        return prepare(
            str(STUDIES / self.setting.data),
            model=str(STUDIES / self.setting.folder),
            task=self.setting.task,
            columns=self.setting.columns,
            splits=splits,
            training=self.setting.training,
        )

    @cached_property
    def meta(self) -> Base:
        """Return the model without weights."""
        return build_meta(str(STUDIES / self.setting.folder), find_task(self.setting.task).head(self.data.labels))

    @cached_property
    def _worker(self) -> Worker:
        folder = str(STUDIES / self.setting.folder)
        return Worker(WorkerSetup(model=folder, training=self.setting.training, data=self.data))

    def refusal(self, design: Design) -> str:
        """Return why a design is illegal on the model, or an empty string."""
        try:
            design.check(self.meta.summary)
        except AutopeftError as error:
            return str(error)
        return "" if design.blocks or self.meta.summary.new_modules else "nothing trains: the model has no new modules"

    def n_trainable(self, design: Design) -> int:
        """Return how many parameters train, the head's too; how the base is stored changes nothing of it."""
        with attach(self.meta, replace(design, quantization="none").resolve(self.meta.summary)) as attached:
            return attached.n_trainable

    def run(self, design: Design, rates: Mapping[str, float], *, seed: int = 0) -> dict[str, Any]:
        """Train and evaluate a design; return what became of it."""
        self._n_runs += 1
        if self._n_runs % FRESH_WORKER_AFTER == 0:
            self.__dict__.pop("_worker", None)
        started = time.perf_counter()
        rates = {HEAD: default_learning_rate(HEAD), **rates}
        result = self._worker.run(
            Segment(trial=0, design=design.resolve(self.meta.summary), learning_rates=rates, seed=seed)
        )
        if result.status not in (SegmentStatus.DONE, SegmentStatus.DIVERGED):
            raise SystemExit(f"{self.setting.name}, {design.describe()}: {result.status}\n{result.error}")
        return {
            "status": str(result.status.value),
            "learning_rates": {name: rates[name] for name in (HEAD, *design.kinds)},
            "scores": {name: round(float(value), 5) for name, value in result.scores.items()},
            "peak_memory": result.measured.peak_memory,
            "train_seconds": round(result.measured.train_seconds, 2),
            "seconds": round(time.perf_counter() - started, 2),
        }


@dataclass
class RunFile:
    """The runs of a benchmark, one JSON file, written anew after each run.

    Attributes:
        minutes: After which no further run starts.
    """

    path: Path
    minutes: float
    runs: list[dict[str, Any]] = field(init=False)
    _started: float = field(default_factory=time.monotonic, init=False)

    def __post_init__(self) -> None:
        """Read what earlier calls have written."""
        self.runs = json.loads(self.path.read_text(encoding="utf-8"))["runs"] if self.path.is_file() else []

    @property
    def time_is_over(self) -> bool:
        """Return whether no further run may start."""
        return time.monotonic() - self._started >= 60 * self.minutes

    def get(self, key: Mapping[str, Any], work: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """Return the run of this key, from the file or from doing it now; None where the time is over."""
        known = next((run for run in self.runs if run["key"] == key), None)
        if known is not None:
            return known
        if self.time_is_over:
            return None
        run = {"key": dict(key), **work()}
        self.runs.append(run)
        self._write()
        return run

    def _write(self) -> None:
        record = {
            "schema_version": 1,
            "machine": {"cpu": cpu_name_with_units(), "threads": torch.get_num_threads()},
            "versions": {name: version(name) for name in PACKAGES},
            "runs": self.runs,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        partial.replace(self.path)


def quiet() -> None:
    """Keep transformers' own lines out of a benchmark's."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def minilm(*, n_train: int, n_validation: int, epochs: float = 2) -> Setting:
    """Return MiniLM on reviews."""
    return Setting(
        name="all-MiniLM-L6-v2",
        folder="quickstart/model",
        data="quickstart/reviews.csv",
        task="text-classification",
        columns={"text": "text", "label": "label", "group": "film"},
        score="accuracy",
        n_train=n_train,
        n_validation=n_validation,
        epochs=epochs,
        batch_size=16,
        max_length=64,
    )


def smollm2(*, n_train: int, n_validation: int, epochs: float = 1) -> Setting:
    """Return SmolLM2 on reviews to be written; `make smollm2` unpacks it."""
    return Setting(
        name="SmolLM2-135M-Instruct",
        folder="smollm2/model",
        data="smollm2/reviews.jsonl",
        task="causal-lm",
        columns={"prompt": "prompt", "completion": "completion", "group": "film"},
        score="perplexity",
        n_train=n_train,
        n_validation=n_validation,
        epochs=epochs,
        batch_size=4,
        max_length=48,
    )
