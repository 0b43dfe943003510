"""What a design costs on a model, a workload and a device: the estimate that budgets are checked against."""

import copy
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TypeVar

import torch

from autopeft.costs import generation
from autopeft.costs.allocator import replay
from autopeft.costs.cuda import CUBLAS_WORKSPACES
from autopeft.costs.explanation import Explanation, explain
from autopeft.costs.fake_weights import storage_bytes, tensors_of
from autopeft.costs.quantized import quantize_meta
from autopeft.costs.representatives import Layers, Unattached, attach_meta, attached_to_few
from autopeft.costs.simulated_step import Machine, SimulatedStep, StepCost, UnlikeLayersError
from autopeft.errors import AutopeftError, DesignError, ModelError
from autopeft.models.attach import Attached
from autopeft.models.base import Base
from autopeft.spec.block import Quantization
from autopeft.spec.cost import Estimate, Workload
from autopeft.spec.design import Design
from autopeft.spec.learning_rates import HEAD
from autopeft.spec.messages import first_line
from autopeft.spec.training import Kernel, OptimizerName, Precision

VERSION = "dry-run-4"
"""Changes whenever an estimate may: trials of one study must be comparable."""

_DEVICES = ("cpu", "cuda")
Answer = TypeVar("Answer")


class Estimator:
    """Say what designs cost, without weights and without training; called with a design.

    The design is really attached to the model on the meta device. Answers are kept by the design's key.

    Omits: memory outside of tensors (the Python process, the CUDA context), what an allocator reserves
        beyond them, and what `autopeft.costs.kernels` lists.
    """

    version = VERSION

    def __init__(
        self,
        base: Base,
        *,
        workload: Workload,
        precision: Precision,
        kernel: Kernel,
        device: str,
        n_threads: int | None = None,
        optimizer: OptimizerName = "adamw",
        checkpointing: bool = False,
    ) -> None:
        """Prepare for designs on one model.

        Args:
            base: From `build_meta`; left as it is.
            workload: Shapes of the batches, and tokens of a full training.
            precision: Computation dtype.
            kernel: Attention kernel that the base was built with; an architecture that has no `sdpa` runs eager.
            device: Where the training will run: `cpu` or `cuda`.
            n_threads: Threads of the process that will train on a CPU; None means as many as here.
            optimizer: What makes the steps.
            checkpointing: Whether layers compute their activations again in the backward pass.

        Raises:
            ModelError: The base has weights, or was built for another kernel; the device is another one.
        """
        if base.device.type != "meta" or base.quantization != "none":
            raise ModelError(
                f"an estimator needs an unquantized base on the meta device, but got {base.quantization} on "
                f"{base.device.type}; make one with build_meta"
            )
        if base.kernel != kernel and kernel == "eager":
            raise ModelError(f"the base must be built for the kernel that trains, but has {base.kernel}, not {kernel}")
        if torch.device(device).type not in _DEVICES:
            raise ModelError(f"device must be one of {', '.join(_DEVICES)}, but got {device!r}")
        self._bases: dict[Quantization, Base] = {"none": base}
        self._workload = workload
        self._machine = Machine(
            device=torch.device(device).type,
            precision=precision,
            n_threads=torch.get_num_threads() if n_threads is None else n_threads,
            optimizer=optimizer,
            checkpointing=checkpointing,
        )
        self._base_bytes: dict[Quantization, int] = {}
        self._layers: dict[Quantization, Layers] = {}
        self._estimates: dict[str, Estimate] = {}
        self._n_trainable: dict[str, int] = {}
        self._broken: dict[str, str] = {}

    def __call__(self, design: Design) -> Estimate:
        """Return the cost of a design.

        Raises:
            DesignError: The design is illegal on this model.
        """
        if design.key not in self._estimates:
            self._estimates[design.key] = self._estimate(design)
        return self._estimates[design.key]

    @property
    def machine(self) -> Machine:
        """Return where the steps run."""
        return self._machine

    @property
    def workload(self) -> Workload:
        """Return the shapes of the batches."""
        return self._workload

    def resized(self, workload: Workload) -> "Estimator":
        """Return an estimator for batches of other shapes; the model's stored forms are shared, not made again."""
        other = copy.copy(self)
        other._workload, other._estimates, other._n_trainable, other._broken = workload, {}, {}, {}
        return other

    def check(self, design: Design) -> None:
        """Raise `DesignError` where what the design puts before the longest input leaves it too few positions."""
        summary, longest = self._bases["none"].summary, self._workload.max_tokens
        n_positions = None if summary.modality == "vision" else summary.n_positions  # what joins patches takes none
        for block in design.blocks:
            if n_positions is not None and block.n_input_tokens and block.n_input_tokens + longest > n_positions:
                raise DesignError(
                    f"{block.kind}.length + longest input <= n_positions must hold, but got length="
                    f"{block.n_input_tokens}, longest input={longest}, n_positions={n_positions}; lower "
                    f"training.max_length (the length of the inputs) or {block.kind}.length"
                )

    def trainable_params(self, design: Design) -> int:
        """Return how many parameters train, exactly, by attaching the design and no more.

        Raises:
            DesignError: The design is illegal on this model.
        """
        if design.key not in self._n_trainable:
            self._n_trainable[design.key] = self._with_few(design, _n_trainable)
        return self._n_trainable[design.key]

    def lower_bound(self, design: Design) -> Mapping[str, int]:
        """Return costs that the full estimate surely reaches, by name: those that are cheap to say.

        Raises:
            DesignError: The design is illegal on this model.
        """
        return {"trainable_params": self.trainable_params(design)}

    def steps(self, design: Design) -> tuple[StepCost, StepCost]:
        """Return what a training step and an evaluation step at the largest batches cost, and what memory is for.

        Raises:
            DesignError: The design is illegal on this model.
        """
        return self._with_few(design, self._steps)

    def explain(self, design: Design) -> Explanation:
        """Return what the memory of all steps is made of: by module at the peak, and over time.

        Raises:
            DesignError: The design is illegal on this model.
        """
        workload, n_tokens = self._workload, self._workload.max_tokens
        with (
            self._attach(design) as attached,
            SimulatedStep(attached, self._machine, names=True) as run,
        ):
            trains = attached.n_trainable > 0
            training = run.training_events(batch_size=workload.batch_size, n_tokens=n_tokens) if trains else []
            evaluation = run.evaluation_events(batch_size=workload.evaluation_batch_size, n_tokens=n_tokens)
            lengths = self._writing_lengths(design)
            writing = [] if lengths is None else run.generation_events(**lengths)
            return explain(training, evaluation, writing)

    def _attach(self, design: Design) -> Attached:
        self.check(design)
        return attach_meta(self.base(design.quantization), design, checkpointing=self._machine.checkpointing)

    def _with_few(self, design: Design, use: Callable[[Attached, Unattached], Answer]) -> Answer:
        """Return what a function makes of a design that is attached to as few layers as say all.

        Raises:
            DesignError: The design is illegal on this model, or breaks on it.
        """
        if design.key in self._broken:
            raise DesignError(self._broken[design.key])
        try:
            return self._attached_to_few(design, use)
        except (AutopeftError, MemoryError):
            raise
        except Exception as error:  # whatever an architecture does that nobody tried: one design's end, not a search's
            where = self.base("none").summary.architecture
            self._broken[design.key] = (
                f"a design must run on its model, but {design.describe()} ends on {where} in {type(error).__name__}: "
                f"{first_line(error)}; take it out of the space"
            )
            raise DesignError(self._broken[design.key]) from error

    def _attached_to_few(self, design: Design, use: Callable[[Attached, Unattached], Answer]) -> Answer:
        self.check(design)
        base = self.base(design.quantization)
        design.check(base.summary)
        if design.quantization not in self._layers:
            self._layers[design.quantization] = Layers(base)
        repeats = self._layers[design.quantization].repeats(design)
        if repeats:
            checkpointing = self._machine.checkpointing
            with (
                suppress(UnlikeLayersError),
                attached_to_few(base, design, repeats, checkpointing=checkpointing) as few,
            ):
                if few is not None:
                    return use(*few)
        with self._attach(design) as attached:
            return use(attached, Unattached())

    def _run(self, attached: Attached, unattached: Unattached) -> SimulatedStep:
        few = unattached if unattached.repeats else None
        return SimulatedStep(attached, self._machine, unattached=few)

    def _steps(self, attached: Attached, unattached: Unattached) -> tuple[StepCost, StepCost]:
        with self._run(attached, unattached) as run:
            return self._training_and_evaluation(run)

    def _training_and_evaluation(self, run: SimulatedStep) -> tuple[StepCost, StepCost]:
        workload, n_tokens = self._workload, self._workload.max_tokens
        return (
            run.training_step(batch_size=workload.batch_size, n_tokens=n_tokens),
            run.evaluation_step(batch_size=workload.evaluation_batch_size, n_tokens=n_tokens),
        )

    def generation(self, design: Design) -> StepCost | None:
        """Return what writing samples costs, or None where the model writes none.

        Raises:
            DesignError: The design is illegal on this model.
        """

        def generate(attached: Attached, unattached: Unattached) -> StepCost | None:
            with self._run(attached, unattached) as run:
                return self._generation(run, design)

        return self._with_few(design, generate)

    def _generation(self, run: SimulatedStep, design: Design) -> StepCost | None:
        lengths = self._writing_lengths(design)
        return None if lengths is None else run.generation_step(**lengths)

    def _writing_lengths(self, design: Design) -> dict[str, int] | None:
        """Return the tokens that forward passes read which write samples; None where the model writes none."""
        lengths = generation.lengths(self.base(design.quantization), self._workload)
        if lengths is None:
            return None
        n_added = sum(block.n_input_tokens for block in design.blocks)
        return {"n_prompt_tokens": lengths[0], "n_cached_tokens": lengths[1] + n_added}

    def _estimate(self, design: Design) -> Estimate:
        base_bytes = self._stored_bytes(design.quantization)

        def estimate(attached: Attached, unattached: Unattached) -> Estimate:
            with self._run(attached, unattached) as run:
                training, evaluation = self._training_and_evaluation(run)
                writing = self._generation(run, design)
            steps = [training, evaluation] if writing is None else [training, evaluation, writing]
            peak = max(steps, key=lambda step: step.peak_bytes)
            return Estimate(
                trainable_params=_n_trainable(attached, unattached),
                head_params=sum(parameter.numel() for parameter in attached.groups.get(HEAD, [])),
                adapter_bytes=_adapter_bytes(attached) + unattached.exported_bytes,
                base_bytes=base_bytes,
                peak_memory=peak.peak_bytes,  # whichever of the steps needs most
                at_peak={str(category): n_bytes for category, n_bytes in peak.at_peak.items()},
                step_flops=training.flops,
                train_flops=full_training_flops(training.flops, training.attention_flops, self._workload, design),
                inference_flops=evaluation.flops // self._workload.evaluation_batch_size,
                serving=design.serving(self.base("none").summary),
                version=self.version,
                reserved_memory=_reserved_bytes(*steps),
            )

        return self._with_few(design, estimate)

    def base(self, quantization: Quantization) -> Base:
        """Return the model on the meta device in a storage."""
        if quantization not in self._bases:
            self._bases[quantization] = quantize_meta(self._bases["none"], quantization, self._machine.precision)
        return self._bases[quantization]

    def _stored_bytes(self, quantization: Quantization) -> int:
        """Return the bytes of everything that is frozen in a base with nothing attached."""
        if quantization not in self._base_bytes:
            self._base_bytes[quantization] = stored_bytes(self.base(quantization))
        return self._base_bytes[quantization]


def _reserved_bytes(training: StepCost, *others: StepCost) -> int | None:
    """Return what CUDA's allocator would reserve at most, or None on a CPU."""
    events = [step.events for step in others if step.events is not None]
    return replay(training.events, *events, workspaces=CUBLAS_WORKSPACES).reserved_bytes if events else None


def stored_bytes(base: Base) -> int:
    """Return the bytes of a base's frozen storages, without the modules that start from scratch."""
    new = {id(tensor) for path in base.summary.new_modules for tensor in base.model.get_submodule(path).parameters()}
    return storage_bytes(tensor for tensor in tensors_of(base.model) if id(tensor) not in new)


def _n_trainable(attached: Attached, unattached: Unattached) -> int:
    """Return how many parameters train, in all layers."""
    return attached.n_trainable + sum(tensor.numel() for tensor in unattached.trainable)


def _adapter_bytes(attached: Attached) -> int:
    """Return the bytes of every tensor of an export: what trained, folded where it can be, and what comes with it."""
    return sum(tensor.numel() * tensor.itemsize for tensor in attached.exported_tensors().values())


def full_training_flops(flops: float, attention_flops: float, workload: Workload, design: Design) -> int:
    """Return the FLOPs of a full training from those of one step of the longest examples.

    Args:
        flops: Of the step.
        attention_flops: The part of them that grows with the square of the length.
        workload: What the full training reads.
        design: May put tokens before every input.

    Omits: the spread of lengths. Attention grows with the square of the length, and is taken at the
        mean length: too low by the variance of the batches' lengths over their squared mean, on a part
        that is itself under a tenth at 128 tokens of MiniLM. A head that reads each token of the text is
        taken to read the added ones too. Evaluations are not training.
    """
    n_added_tokens = sum(block.n_input_tokens for block in design.blocks)
    longest = workload.max_tokens + n_added_tokens
    n_tokens = workload.n_train_tokens + n_added_tokens * workload.n_examples
    linear = (flops - attention_flops) / (workload.batch_size * longest)
    attention = attention_flops / (workload.batch_size * longest**2)
    return round(n_tokens * (linear + attention * n_tokens / workload.n_examples))
