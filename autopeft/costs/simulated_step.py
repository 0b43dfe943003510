"""One step of training and one of evaluation on tensors without data: the steps of `autopeft.tasks.step`.

Nothing here reads or writes a value.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from typing import Any, Self

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from autopeft.costs.attribution import Attribution
from autopeft.costs.cuda import CudaKernels
from autopeft.costs.fake_weights import fake_weights, tensors_of
from autopeft.costs.generation import cache_of
from autopeft.costs.kernels import flop_formulas, is_attention, replacements, scratch_formulas
from autopeft.costs.operators import FakeOperators
from autopeft.costs.optimizers import state_bytes, step_bytes
from autopeft.costs.repeats import Repeat, few_layers, find_repeats
from autopeft.costs.representatives import Unattached
from autopeft.costs.trace import Event, Trace, summarize
from autopeft.costs.tracker import Category, StorageTracker
from autopeft.costs.unrolling import unrolled
from autopeft.models.attach import Attached
from autopeft.models.checkpointing import RUN, checkpoint_layers
from autopeft.models.losses import few_pieces
from autopeft.spec.training import OptimizerName, Precision
from autopeft.spec.writing import N_SAMPLES
from autopeft.tasks.base import Task, task_of
from autopeft.tasks.batches import Inputs
from autopeft.tasks.step import Phase, evaluation_step, training_loss, training_step

Step = Callable[[StorageTracker, Trace], None]
"""What is run under a tracker and its trace."""


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
    events: Sequence[Event] | None = field(default=None, repr=False)


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
    def forward(self, *, trains: bool) -> Iterator[None]:
        """Give the context that a forward pass runs in; without gradients, autocast keeps no weight that it cast."""
        with ExitStack() as contexts:
            if not trains:
                contexts.enter_context(torch.no_grad())
            if self.precision == "bf16":
                contexts.enter_context(torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=trains))
            if self.device == "cuda":
                contexts.enter_context(CudaKernels())
            yield

    def recomputed(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        """Give the contexts in which a checkpointed layer is computed at first, and again: autocast it brings along."""
        return nullcontext(), CudaKernels() if self.device == "cuda" else nullcontext()


class UnlikeLayersError(Exception):
    """Layers that were taken to do the same do not: the design must be attached to all of them."""


class SimulatedStep:
    """An attached model on fake tensors, inside a `with` block; its steps can be run one after the other."""

    tracker_class: type[StorageTracker] = StorageTracker

    def __init__(
        self,
        attached: Attached,
        machine: Machine,
        *,
        unattached: Unattached | None = None,
        whole: bool = False,
        names: bool = False,
        task: Task | None = None,
    ) -> None:
        """Prepare for steps.

        Args:
            attached: On the meta device.
            machine: Where the steps run.
            unattached: What the design would have in layers that it was not attached to.
            whole: Whether every layer is run, also where a few speak for all: it takes longer and says the same.
            names: Whether events say which module they are of.
            task: Whose steps they are; that of the base's head by default.
        """
        self._attached = attached
        self._model = attached.model
        self._task = task or task_of(attached.base.head)
        self._machine = machine
        self._device = torch.device("cpu")  # CUDA is played on CPU tensors: see `autopeft.costs.cuda`
        self._mode = FakeTensorMode()
        self._operators = FakeOperators(self._mode, self._device)
        self._undo = ExitStack()
        self._trainable: list[torch.nn.Parameter] = []
        self._names = names
        self._whole = whole or names
        self._unattached = unattached or Unattached()
        self._repeats = self._unattached.repeats
        if unattached is None and not whole:
            self._repeats = find_repeats(self._model, attached.base.summary)

    def __enter__(self) -> Self:
        """Swap the weights."""
        with ExitStack() as undo:
            undo.callback(self._model.train, self._model.training)
            replace = undo.enter_context(fake_weights(self._model, self._operators))
            self._trainable = [replace(p) for group in self._attached.groups.values() for p in group]
            if self._machine.checkpointing:
                run = partial(RUN, context_fn=self._machine.recomputed)
                checkpoint_layers(self._model, partial(_remember, undo), run)
            undo.enter_context(self._mode)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        """Put the model's own weights back."""
        self._undo.close()

    def training_step(self, *, batch_size: int, n_tokens: int) -> StepCost:
        """Return the cost of one optimizer step, with the optimizer's state in place; nothing where nothing trains.

        Omits: the norms of gradients that clipping makes (a few bytes for each tensor). A batch
            without padding, whose mask models leave out, needs less: up to 22 % in bf16 with eager attention.
        """
        if not self._trainable:
            return StepCost(peak_bytes=0, at_peak={}, flops=0, attention_flops=0)
        return self.cost(self.training_events(batch_size=batch_size, n_tokens=n_tokens))

    def training_events(self, *, batch_size: int, n_tokens: int) -> list[Event]:
        """Return what happens to storages in one optimizer step."""
        self._model.train()
        batch = self._batch(batch_size, n_tokens)
        loss = partial(training_loss, self._model, batch, self._task)
        return self._events(partial(self._train, loss), batch.tensors, trains=True)

    def evaluation_step(self, *, batch_size: int, n_tokens: int) -> StepCost:
        """Return the cost of the forward pass of one batch without gradients, and of what is kept of it."""
        return self.cost(self.evaluation_events(batch_size=batch_size, n_tokens=n_tokens))

    def evaluation_events(self, *, batch_size: int, n_tokens: int) -> list[Event]:
        """Return what happens to storages in the evaluation of one batch."""
        self._model.eval()
        batch = self._batch(batch_size, n_tokens)
        rows = partial(evaluation_step, self._model, batch, self._task)
        return self._events(partial(self._evaluate, rows), batch.tensors, trains=False)

    def generation_step(self, *, n_prompt_tokens: int, n_cached_tokens: int) -> StepCost:
        """Return the cost of the higher of two forward passes that write; arguments as of `generation_events`."""
        return self.cost(self.generation_events(n_prompt_tokens=n_prompt_tokens, n_cached_tokens=n_cached_tokens))

    def generation_events(self, *, n_prompt_tokens: int, n_cached_tokens: int) -> list[Event]:
        """Return what happens to storages in the higher of two forward passes: of prompts, and of the last token.

        Source: `_sample` in transformers' generation/utils.py: the scores of the token before live on, in fp32.

        Args:
            n_prompt_tokens: Of each prompt.
            n_cached_tokens: Whose keys and values are there when the last token is written.
        """
        self._model.eval()
        passes = []
        n_added = sum(block.n_input_tokens for block in self._attached.design.blocks)  # cached, and not in the mask
        for n_cached, n_tokens in ((0, n_prompt_tokens), (n_cached_tokens, n_cached_tokens - n_added + 1)):
            batch = self._batch(N_SAMPLES, n_tokens)
            passes.append(self._events(partial(self._write, n_cached, batch), batch.tensors, trains=False))
        return max(passes, key=lambda events: summarize(events).peak_bytes)

    def _events(self, step: Step, batch: Sequence[torch.Tensor], *, trains: bool) -> list[Event]:
        """Return what happens to storages in a step; of layers that repeat a few are run, where that says all.

        Raises:
            UnlikeLayersError: It does not, and there is nothing attached to the others.
        """
        if self._repeats:
            whole = unrolled(self._traced(step, batch, self._repeats, trains=trains), self._repeats)
            if whole is not None:
                return whole
            if self._unattached.repeats:
                raise UnlikeLayersError("layers must do the same where a few of them are to speak for all")
        return self._traced(step, batch, trains=trains)

    def _traced(
        self, step: Step, batch: Sequence[torch.Tensor], repeats: Sequence[Repeat] = (), *, trains: bool
    ) -> list[Event]:
        """Run a step on top of what is there already, and return what happened."""
        states = [torch.empty(self._state_bytes(), dtype=torch.uint8, device=self._device)] if trains else []
        attribution = Attribution(self._model, self._attached.base.summary) if self._names else None
        trace = Trace(attribution)
        tracker = self.tracker_class(
            scratch=scratch_formulas(self._machine.device, n_threads=self._machine.n_threads),
            flops=flop_formulas(),
            replacements=replacements(),
            observer=trace,
            run=self._operators,
        )
        with ExitStack() as undo:
            if attribution is not None:
                undo.enter_context(attribution.listening())
                attribution.own(states, "optimizer")
                attribution.own(batch, "inputs")
            tracker.register(tensors_of(self._model), "base")
            tracker.register(self._unattached.frozen, "base")
            tracker.register(self._trainable, "trainable")
            tracker.register(self._unattached.trainable, "trainable")
            tracker.register(states, "optimizer")
            tracker.register(batch, "activations")
            for hook in tracker.watch_gradients(self._trainable):
                undo.callback(hook.remove)
            undo.enter_context(few_layers(self._model, repeats, trace, tracker.settle))
            if not self._whole:
                undo.enter_context(few_pieces())
            with tracker:
                step(tracker, trace)
            events = list(trace.events)
        for parameter in self._trainable:
            parameter.grad = None
        return events

    def _train(self, loss_of_batch: Callable[[], torch.Tensor], tracker: StorageTracker, trace: Trace) -> None:
        def watch(phase: Phase) -> None:
            tracker.settle()
            trace.begin(phase)

        def update() -> None:
            tracker.borrow(step_bytes(self._machine.optimizer, self._sizes(), device=self._machine.device))

        forward = self._machine.forward(trains=True)
        training_step(self._attached, loss_of_batch, forward=forward, update=update, watch=watch)

    def _evaluate(self, rows_of_batch: Callable[[], object], _tracker: StorageTracker, trace: Trace) -> None:
        trace.begin("evaluation")
        with self._machine.forward(trains=False):
            rows_of_batch()

    def _write(self, n_cached: int, batch: Inputs, _tracker: StorageTracker, trace: Trace) -> None:
        inputs = batch.forward
        trace.begin("writing")
        base, ids = self._attached.base, inputs["input_ids"]
        read = ids[:, -1:] if n_cached else ids
        asked: dict[str, Any] = {**inputs, "input_ids": read, "past_key_values": cache_of(base, n_cached)}
        if "logits_to_keep" in signature(self._model.forward).parameters:
            asked["logits_to_keep"] = 1
        size = base.summary.vocabulary_size
        before = torch.empty(N_SAMPLES, size, device=self._device) if n_cached else None
        with self._machine.forward(trains=False):
            scores = self._model(**asked, use_cache=True).logits[:, -1].to(dtype=torch.float32, copy=True)
            del before
            scores.argmax(dim=-1)

    def cost(self, events: list[Event]) -> StepCost:
        """Return what the events of a step come to."""
        summary = summarize(events)
        return StepCost(
            peak_bytes=summary.peak_bytes,
            at_peak=summary.at_peak,
            flops=sum(summary.flops.values()),
            attention_flops=sum(count for packet, count in summary.flops.items() if is_attention(packet)),
            events=events if self._machine.device == "cuda" else None,
        )

    def _state_bytes(self) -> int:
        """Return the bytes that training keeps from step to step: the optimizer's, and the techniques' own."""
        moments = state_bytes(self._machine.optimizer, self._sizes())
        return moments + sum(tensor.numel() * tensor.itemsize for tensor in self._attached.training_state().values())

    def _sizes(self) -> list[int]:
        """Return how many numbers are in each tensor that trains."""
        return [tensor.numel() for tensor in (*self._trainable, *self._unattached.trainable)]

    def _batch(self, batch_size: int, n_tokens: int) -> Inputs:
        return self._task.example_batch(
            self._attached.base, batch_size=batch_size, n_tokens=n_tokens, device=self._device
        )


def _remember(undo: ExitStack, module: nn.Module, name: str) -> None:
    undo.callback(setattr, module, name, getattr(module, name))
