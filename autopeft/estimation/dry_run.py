"""One step of training and one of evaluation on tensors without data.

The steps are those of `autopeft.training.loop` and `autopeft.training.evaluate`, in the same order of
making and dropping tensors. Nothing here reads or writes a value.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from autopeft.estimation.allocator import StepEvents
from autopeft.estimation.batch import batch_for
from autopeft.estimation.cuda import CudaKernels
from autopeft.estimation.fake_weights import fake_weights, tensors_of
from autopeft.estimation.kernels import flop_formulas, is_attention, replacements, scratch_formulas
from autopeft.estimation.tracker import Category, StorageTracker
from autopeft.models.attach import Attached
from autopeft.models.losses import token_loss, token_rows
from autopeft.spec.training import OptimizerName, Precision


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """What one step costs.

    Attributes:
        peak_bytes: Highest sum of live storage bytes.
        at_peak: Bytes by category at the peak.
        flops: Floating-point operations.
        attention_flops: The part that grows with the square of the length.
        events: What happened to storages, in order, for a replay of CUDA's allocator; None on a CPU.
    """

    peak_bytes: int
    at_peak: Mapping[Category, int]
    flops: int
    attention_flops: int
    events: StepEvents | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where a step runs.

    Attributes:
        device: `cpu` or `cuda`.
        n_threads: Threads of a CPU process; kernels keep a workspace for each.
        optimizer: What makes the steps; its state is alive all the time.
        checkpointing: Whether layers compute their activations again in the backward pass.
    """

    device: str
    precision: Precision
    n_threads: int
    optimizer: OptimizerName = "adamw"
    checkpointing: bool = False

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Give the context that a forward pass runs in."""
        with ExitStack() as contexts:
            if self.precision == "bf16":
                contexts.enter_context(torch.autocast("cpu", dtype=torch.bfloat16))
            if self.device == "cuda":
                contexts.enter_context(CudaKernels())
            yield


class DryRun:
    """An attached model on fake tensors, inside a `with` block; its steps can be run one after the other."""

    tracker_class: type[StorageTracker] = StorageTracker

    def __init__(self, attached: Attached, machine: Machine) -> None:
        self._attached = attached
        self._model = attached.model
        self._machine = machine
        self._device = torch.device("cpu")  # CUDA is played on CPU tensors: see `autopeft.estimation.cuda`
        self._mode = FakeTensorMode()
        self._undo = ExitStack()
        self._trainable: list[torch.nn.Parameter] = []

    def __enter__(self) -> Self:
        """Swap the weights."""
        with ExitStack() as undo:
            undo.callback(self._model.train, self._model.training)
            replace = undo.enter_context(fake_weights(self._model, self._mode, self._device))
            self._trainable = [replace(p) for group in self._attached.groups.values() for p in group]
            undo.enter_context(self._mode)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        """Put the model's own weights back."""
        self._undo.close()

    def training_step(self, *, batch_size: int, n_tokens: int) -> StepCost:
        """Return the cost of one optimizer step, with the optimizer's state in place; nothing where nothing trains.

        Source: `Trainer._step` in `autopeft.training.loop`.

        Omits: the norms of gradients that clipping makes (a few bytes for each tensor). Fused AdamW
            allocates nothing: its states and the gradients are all that is alive with the weights. A batch
            without padding, whose mask models leave out, needs less: up to 22 % in bf16 with eager attention.
        """
        if not self._trainable:
            return StepCost(peak_bytes=0, at_peak={}, flops=0, attention_flops=0)
        self._model.train()
        inputs, labels = self._batch(batch_size, n_tokens)
        states = [torch.empty(self._state_bytes(), dtype=torch.uint8, device=self._device)]
        with self._tracking([*inputs.values(), labels], states) as tracker:
            with self._machine.forward():
                loss = self._loss(self._model(**inputs), labels)
            penalty = self._attached.penalty()
            if penalty is not None:
                loss = loss + penalty
            loss.backward()  # type: ignore[no-untyped-call]
        for parameter in self._trainable:
            parameter.grad = None
        return _cost(tracker)

    def evaluation_step(self, *, batch_size: int, n_tokens: int) -> StepCost:
        """Return the cost of the forward pass of one batch without gradients.

        Source: `evaluate` in `autopeft.training.evaluate`.
        """
        self._model.eval()
        inputs, labels = self._batch(batch_size, n_tokens)
        batch = [*inputs.values(), labels] if self._labels_tokens else list(inputs.values())
        with self._tracking(batch) as tracker, torch.no_grad(), self._machine.forward():
            self._evaluate(self._model(**inputs), labels)
        return _cost(tracker)

    @contextmanager
    def _tracking(self, batch: Iterable[torch.Tensor], states: Iterable[torch.Tensor] = ()) -> Iterator[StorageTracker]:
        """Follow what happens inside, on top of what is there already."""
        events = StepEvents() if self._machine.device == "cuda" else None
        tracker = self.tracker_class(
            scratch=scratch_formulas(self._machine.device, n_threads=self._machine.n_threads),
            flops=flop_formulas(),
            replacements=replacements(),
            observer=events,
        )
        tracker.register(tensors_of(self._model), "base")
        tracker.register(self._trainable, "trainable")
        tracker.register(states, "optimizer")
        tracker.register(batch, "activations")
        hooks = tracker.watch_gradients(self._trainable)
        try:
            with tracker:
                yield tracker
        finally:
            for hook in hooks:
                hook.remove()
            if events is not None:
                events.backward_done()

    def _state_bytes(self) -> int:
        """Return the bytes that training keeps: AdamW's two moments and step count in fp32, and the techniques' own."""
        moments = sum(2 * tensor.numel() * tensor.itemsize + 4 for tensor in self._trainable)
        return moments + sum(tensor.numel() * tensor.itemsize for tensor in self._attached.training_state().values())

    def _batch(self, batch_size: int, n_tokens: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        return batch_for(self._attached.base, batch_size=batch_size, n_tokens=n_tokens, device=self._device)

    @property
    def _labels_tokens(self) -> bool:
        """Return whether the model writes, so that its labels are tokens: it has no classes."""
        return not self._attached.base.head.labels

    def _loss(self, outputs: Any, labels: torch.Tensor) -> torch.Tensor:
        """Return what training minimises, as the tasks compute it."""
        if self._labels_tokens:
            return token_loss(outputs.logits, labels)
        return torch.nn.functional.cross_entropy(outputs.logits.float(), labels)

    def _evaluate(self, outputs: Any, labels: torch.Tensor) -> None:
        """Compute what an evaluation keeps of a batch, as the tasks do."""
        if self._labels_tokens:
            token_rows(outputs.logits, labels)
        else:
            outputs.logits.float().argmax(dim=-1)


def _cost(tracker: StorageTracker) -> StepCost:
    return StepCost(
        peak_bytes=tracker.peak_bytes,
        at_peak=tracker.at_peak,
        flops=sum(tracker.flops.values()),
        attention_flops=sum(count for packet, count in tracker.flops.items() if is_attention(packet)),
        events=tracker.observer if isinstance(tracker.observer, StepEvents) else None,
    )
