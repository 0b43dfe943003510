"""What runs a segment: the one thing that an executor starts, here or on another machine."""

import gc
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from autopeft.errors import ModelError
from autopeft.models.artifact import pack
from autopeft.models.attach import Attached, attach
from autopeft.models.base import Base, load_base
from autopeft.models.loading import read_tokenizer
from autopeft.models.model_files import locate
from autopeft.spec.block import Quantization
from autopeft.spec.cost import Measured
from autopeft.spec.task import package_of
from autopeft.spec.training import Training
from autopeft.spec.trial import Sample, Segment, SegmentResult, SegmentStatus
from autopeft.spec.writing import N_SAMPLES
from autopeft.tasks.base import Evaluation, PreparedData, find_task
from autopeft.tasks.batches import n_padded_tokens
from autopeft.tasks.examples import Examples
from autopeft.tasks.independence import check_rows
from autopeft.tasks.writing import write_samples
from autopeft.training.checkpoint import Checkpoint
from autopeft.training.clock import Deadline, Pace
from autopeft.training.device import memory_bytes
from autopeft.training.evaluate import evaluate
from autopeft.training.loop import SegmentProgress, Trainer, own_generators
from autopeft.training.measure import Peak, live_bytes, model_tensors
from autopeft.training.plan import BatchPlan, full_examples

ShouldStop = Callable[[], bool]


@dataclass(frozen=True, kw_only=True, eq=False)
class WorkerSetup:
    """What a worker needs once; segments bring the rest.

    Attributes:
        training: With device, precision and kernel chosen (see `autopeft.training.device`).
    """

    model: str
    revision: str | None = None
    trust_remote_code: bool = False
    training: Training
    data: PreparedData


class Worker:
    """Runs segments of any trial of a study on one device, reusing the loaded base models."""

    def __init__(self, setup: WorkerSetup) -> None:
        """Remember the setup; base models are loaded when a segment first needs them."""
        self.setup = setup
        self._task = find_task(setup.data.task)
        self._bases: dict[Quantization, Base] = {}
        self._evaluation_pace: dict[Quantization, float | None] = {}
        self._checked: set[tuple[str, ...]] = set()

    def run(self, segment: Segment, should_stop: ShouldStop = lambda: False) -> SegmentResult:
        """Run a segment; whatever goes wrong comes back as data.

        Args:
            segment: What to do.
            should_stop: Asked before each step, and each batch of an evaluation; where it says yes, or the segment's
                deadline is over, the segment returns a checkpoint at once.
        """
        deadline = Deadline(seconds=segment.deadline_seconds)
        try:
            with own_generators(self.setup.training.device):
                return self._run(segment, deadline, lambda: should_stop() or not deadline.leaves(0.0))
        except Exception as error:
            failure = SegmentResult(
                trial=segment.trial,
                status=status_of(error),
                examples=segment.start,
                error="".join(traceback.format_exception(error)),
            )
        # Outside of the handler, where nothing refers to the failed step's tensors any more.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return failure

    def device_bytes(self) -> int:
        """Return the memory of the device that this trains on."""
        return memory_bytes(self.setup.training.device)

    def held_bytes(self) -> dict[str, int]:
        """Return the memory of the base models that are loaded, by quantization."""
        return {quantization: live_bytes(model_tensors(base.model)) for quantization, base in self._bases.items()}

    def _run(self, segment: Segment, deadline: Deadline, should_stop: ShouldStop) -> SegmentResult:
        quantization = segment.design.quantization
        base = self._base(quantization)
        stage = self._test if segment.stage == "test" else self._train
        try:
            checkpointing = self.setup.training.checkpointing
            with attach(base, segment.design, seed=segment.seed, checkpointing=checkpointing) as attached:
                self._check_rows(attached)
                return stage(attached, segment, deadline, should_stop)
        finally:
            try:
                base.verify()
            except ModelError:
                # The next segment loads it again: a changed base must never reach another trial.
                del self._bases[quantization]

    def _check_rows(self, attached: Attached) -> None:
        """Refuse techniques under which a row's answer depends on the rows beside it; each set of them is tried once.

        Omits: quantized bases, whose rounding is no smaller than what is looked for.
        """
        kinds = attached.design.kinds
        if kinds in self._checked or attached.design.quantization != "none":
            return
        way_out = f"take {' or '.join(kinds) or 'another model'}" + (" out of the space" if kinds else "")
        check_rows(attached.model, self.setup.data, attached.base.device, way_out=way_out)
        self._checked.add(kinds)

    def _base(self, quantization: Quantization) -> Base:
        if quantization not in self._bases:
            setup, training = self.setup, self.setup.training
            if "auto" in (training.device, training.precision, training.kernel):
                raise ModelError(
                    f"a worker needs device, precision and kernel to be chosen, but got {training.device}, "
                    f"{training.precision}, {training.kernel}; call autopeft.training.device.choose_training first"
                )
            self._bases[quantization] = load_base(
                setup.model,
                self._task.head(setup.data.labels),
                quantization=quantization,
                precision=training.precision,  # type: ignore[arg-type]  # "auto" was refused above
                kernel=training.kernel,  # type: ignore[arg-type]
                device=training.device,
                revision=setup.revision,
                trust_remote_code=setup.trust_remote_code,
            )
        return self._bases[quantization]

    def _train(
        self, attached: Attached, segment: Segment, deadline: Deadline, should_stop: ShouldStop
    ) -> SegmentResult:
        data, training = self.setup.data, self.setup.training
        full = segment.full or full_examples(len(data.train), training)
        if attached.n_trainable == 0:
            return self._untrained(attached, segment, full, deadline, should_stop)
        trainer = Trainer.of(
            attached,
            replace(BatchPlan.of(data, training, seed=segment.seed), full=full),
            segment.learning_rates,
            data=data,
            task=self._task,
            training=training,
            pace=Pace(evaluation_seconds_per_token=self._evaluation_pace.get(segment.design.quantization)),
            evaluation_tokens=self._n_tokens(data.validation),
        )
        if segment.checkpoint is not None:
            checkpoint = Checkpoint.from_bytes(segment.checkpoint)
            checkpoint.check(design=segment.design.key, seed=segment.seed, full=full, examples=segment.start)
            trainer.resume(checkpoint)
        elif segment.start:
            raise ModelError(f"a segment that starts at example {segment.start} needs a checkpoint, but has none")
        progress = trainer.run(segment.start, segment.stop or full, deadline, should_stop)
        evaluation, saved = None, None
        if progress.status is not SegmentStatus.DIVERGED:
            saved = trainer.checkpoint(progress.examples).to_bytes()
            if progress.status is SegmentStatus.DONE:
                evaluation = self._evaluate(attached, data.validation, trainer.pace, progress, should_stop)
        result = self._result(segment, progress, evaluation)
        if not result.error:
            result = replace(result, checkpoint=saved)
        if progress.examples < full or evaluation is None:
            return result
        return replace(result, artifact=pack(attached, metadata=self._metadata(segment, evaluation, progress)))

    def _untrained(
        self, attached: Attached, segment: Segment, full: int, deadline: Deadline, should_stop: ShouldStop
    ) -> SegmentResult:
        """Evaluate a design of which nothing trains: the base model as it is, complete at once, nothing to export."""
        progress, evaluation = SegmentProgress(examples=full), None
        pace = Pace(evaluation_seconds_per_token=self._evaluation_pace.get(segment.design.quantization))
        if deadline.leaves(pace.expected_evaluation_seconds(self._n_tokens(self.setup.data.validation))):
            evaluation = self._evaluate(attached, self.setup.data.validation, pace, progress, should_stop)
        else:
            progress.status = SegmentStatus.INTERRUPTED
        if evaluation is None:
            progress.examples = segment.start
            return self._result(segment, progress)
        saved = Checkpoint(design=segment.design.key, seed=segment.seed, examples=full, full=full, adapter={})
        return replace(self._result(segment, progress, evaluation), checkpoint=saved.to_bytes())

    def _test(self, attached: Attached, segment: Segment, deadline: Deadline, should_stop: ShouldStop) -> SegmentResult:
        if segment.checkpoint is None:
            raise ModelError("a segment of stage 'test' needs the checkpoint of a trained trial, but has none")
        checkpoint = Checkpoint.from_bytes(segment.checkpoint)
        checkpoint.check(
            design=segment.design.key, seed=segment.seed, full=segment.full or checkpoint.full, examples=None
        )
        attached.load_state(checkpoint.adapter)
        progress = SegmentProgress(examples=checkpoint.examples)
        pace = Pace(evaluation_seconds_per_token=self._evaluation_pace.get(segment.design.quantization))
        if not deadline.leaves(pace.expected_evaluation_seconds(self._n_tokens(self.setup.data.test))):
            progress.status = SegmentStatus.INTERRUPTED
            return self._result(segment, progress)
        evaluation = self._evaluate(attached, self.setup.data.test, pace, progress, should_stop)
        result = self._result(segment, progress, evaluation)
        if evaluation is None:
            return result
        return replace(result, samples=self._samples(attached, should_stop))

    def _samples(self, attached: Attached, should_stop: ShouldStop) -> tuple[Sample, ...]:
        """Return what the design writes for a few test examples, where the task writes and the time allows."""
        prompts = self._task.prompts(self.setup.data.test, N_SAMPLES)
        if not prompts or self._tokenizer is None:
            return ()
        try:
            return write_samples(attached, prompts, self._tokenizer, self.setup.training, should_stop)
        except ModelError:  # transformers does not let it write; its scores are none the worse for that
            return ()

    @cached_property
    def _tokenizer(self) -> Any:
        setup = self.setup
        folder = locate(setup.model, revision=setup.revision, trust_remote_code=setup.trust_remote_code)
        return read_tokenizer(folder, trust_remote_code=setup.trust_remote_code)

    def _evaluate(
        self, attached: Attached, split: Examples, pace: Pace, progress: SegmentProgress, should_stop: ShouldStop
    ) -> Evaluation | None:
        """Evaluate, and note in `progress` what became of it."""
        started = time.perf_counter()
        evaluation = None
        # Once for a trial: in the segment whose training step is measured, or where nothing is trained.
        peak = Peak() if progress.measured.peak_memory is not None or progress.measured.n_steps == 0 else None
        try:
            evaluation = evaluate(
                attached.model,
                split,
                self._task,
                self.setup.training,
                max_length=self.setup.data.max_length,
                device=attached.base.device,
                should_stop=should_stop,
                peak=peak,
            )
        except FloatingPointError as error:
            progress.status, progress.error = SegmentStatus.DIVERGED, f"{error} after example {progress.examples}"
        else:
            if evaluation is None:
                progress.status = SegmentStatus.INTERRUPTED
        seconds = time.perf_counter() - started
        progress.measured += Measured(peak_memory=None if peak is None else peak.n_bytes, evaluation_seconds=seconds)
        if evaluation is not None:
            pace.evaluation_took(seconds, self._n_tokens(split))
            self._evaluation_pace[attached.design.quantization] = pace.evaluation_seconds_per_token
        return evaluation

    def _n_tokens(self, split: Examples) -> int:
        return n_padded_tokens(split, self.setup.training.evaluation_batch_size, self.setup.data.max_length)

    def _result(
        self, segment: Segment, progress: SegmentProgress, evaluation: Evaluation | None = None
    ) -> SegmentResult:
        return SegmentResult(
            trial=segment.trial,
            status=progress.status,
            examples=progress.examples,
            scores={} if evaluation is None else evaluation.scores,
            standard_errors={} if evaluation is None else evaluation.standard_errors,
            predictions=() if evaluation is None else tuple(evaluation.predictions.tolist()),
            measured=progress.measured,
            losses=tuple(progress.losses),
            error=progress.error,
        )

    def _metadata(self, segment: Segment, evaluation: Evaluation, progress: SegmentProgress) -> dict[str, object]:
        data = self.setup.data
        return {
            "task": data.task,
            **({"task_package": package} if (package := package_of(data.task)) else {}),
            "labels": list(data.labels),
            "max_length": data.max_length,
            "columns": dict(data.columns),
            "revision": self.setup.revision,
            "data_fingerprint": data.fingerprint,
            "trial": segment.trial,
            "seed": segment.seed,
            "examples": progress.examples,
            "learning_rates": dict(segment.learning_rates),
            "validation": evaluation.scores,
        }


def status_of(error: BaseException) -> SegmentStatus:
    """Return how a segment ended that raised this error: out of memory is told apart from every other failure."""
    message = str(error).lower()
    exhausted = isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in message or "defaultcpuallocator" in message)
    )
    return SegmentStatus.OUT_OF_MEMORY if exhausted else SegmentStatus.FAILED


def make_worker(setup: WorkerSetup) -> Worker:
    """Return a worker; executors name this function to the processes that they start."""
    return Worker(setup)
