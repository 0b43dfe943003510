"""One step of training and one of evaluation on tensors without data.

The steps are those of `autopeft.training.loop` and `autopeft.training.evaluate`, in the same order of
making and dropping tensors. Nothing here reads or writes a value.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from autopeft.estimate.fake_weights import fake_weights, tensors_of
from autopeft.estimate.kernels import flop_formulas, is_attention, replacements, scratch_formulas
from autopeft.estimate.tracker import Category, StorageTracker
from autopeft.models.attach import Attached
from autopeft.spec.training import Precision


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """What one step costs.

    Attributes:
        peak_bytes: Highest sum of live storage bytes.
        at_peak: Bytes by category at the peak.
        flops: Floating-point operations.
        attention_flops: The part that grows with the square of the length.
    """

    peak_bytes: int
    at_peak: Mapping[Category, int]
    flops: int
    attention_flops: int


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where a step runs.

    Attributes:
        n_threads: Threads of a CPU process; kernels keep a workspace for each.
    """

    device: str
    precision: Precision
    n_threads: int

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context that a forward pass runs in."""
        return torch.autocast(self.device, dtype=torch.bfloat16) if self.precision == "bf16" else nullcontext()


def training_step(attached: Attached, machine: Machine, *, batch_size: int, n_tokens: int) -> StepCost:
    """Return the cost of one optimizer step, with the optimizer's state in place.

    Forward, backward, clipping, AdamW: gradients live from the backward to the end of the step.
    """
    with _Run(attached, machine, batch_size, n_tokens) as run:
        run.model.train()
        optimizer = run.optimizer()
        with run.tracking(optimizer):
            with machine.autocast():
                loss = _loss(run.model(**run.inputs), run.labels)
            float(loss.detach())
            loss.backward()
            float(torch.nn.utils.clip_grad_norm_(run.parameters, math.inf))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return run.cost()


def evaluation_step(attached: Attached, machine: Machine, *, batch_size: int, n_tokens: int) -> StepCost:
    """Return the cost of the forward pass of one batch without gradients."""
    with _Run(attached, machine, batch_size, n_tokens) as run:
        run.model.eval()
        with run.tracking(), torch.no_grad(), machine.autocast():
            run.model(**run.inputs).logits.float().argmax(dim=-1)
        return run.cost()


class _Run:
    """A model on fake tensors, its batch, and the tracker of what happens to them."""

    def __init__(self, attached: Attached, machine: Machine, batch_size: int, n_tokens: int) -> None:
        self.model = attached.model
        self._attached = attached
        self._device = torch.device(machine.device)
        self._shape = (batch_size, n_tokens)
        self._mode = FakeTensorMode()
        self._undo = ExitStack()
        self._tracker = StorageTracker(
            scratch=scratch_formulas(n_threads=machine.n_threads), flops=flop_formulas(), replacements=replacements()
        )

    def __enter__(self) -> Self:
        with self._undo as undo:
            undo.callback(self.model.train, self.model.training)
            replace = undo.enter_context(fake_weights(self.model, self._mode, self._device))
            self.parameters = [replace(p) for group in self._attached.groups.values() for p in group]
            undo.enter_context(self._mode)
            self.inputs, self.labels = self._batch()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._undo.close()

    def optimizer(self) -> torch.optim.Optimizer:
        """Return AdamW with the state that it has after its first step."""
        optimizer = torch.optim.AdamW(self.parameters, fused=True)
        for parameter in self.parameters:
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return optimizer

    @contextmanager
    def tracking(self, optimizer: torch.optim.Optimizer | None = None) -> Iterator[None]:
        """Follow what happens inside, on top of what is there already."""
        tracker = self._tracker
        tracker.register(tensors_of(self.model), "base")
        tracker.register(self.parameters, "trainable")
        states = optimizer.state.values() if optimizer is not None else ()
        tracker.register((tensor for state in states for tensor in state.values()), "optimizer")
        tracker.register([*self.inputs.values(), self.labels], "activations")
        hooks = tracker.watch_gradients(self.parameters)
        try:
            with tracker:
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def cost(self) -> StepCost:
        """Return what the tracker saw."""
        flops = self._tracker.flops
        return StepCost(
            peak_bytes=self._tracker.peak_bytes,
            at_peak=self._tracker.at_peak,
            flops=sum(flops.values()),
            attention_flops=sum(count for packet, count in flops.items() if is_attention(packet)),
        )

    def _batch(self) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        def tokens(*shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=torch.int64, device=self._device)

        names = ["input_ids", "attention_mask"]
        if getattr(self.model.config.get_text_config(), "type_vocab_size", 0) > 1:
            names.append("token_type_ids")  # what the model tells segments by, its tokenizer makes
        labels = self._shape[:1] if self._attached.base.head.labels else self._shape
        return {name: tokens(*self._shape) for name in names}, tokens(*labels)


def _loss(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of logits [..., class], in fp32."""
    logits = outputs.logits.float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten())
