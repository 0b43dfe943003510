"""What a real step takes, by torch's own profiler: the oracle of the dry run."""

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import bitsandbytes
import numpy as np
import torch
from torch.autograd.profiler import profile
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from autopeft.costs.kernels import flop_formulas
from autopeft.models.attach import Attached
from autopeft.models.losses import IGNORED, token_loss, token_rows
from autopeft.spec.model import Head
from autopeft.spec.training import Training
from autopeft.tasks.base import PreparedData, task_of
from autopeft.tasks.examples import Examples, Ragged

HEAD = Head(auto_class="AutoModelForSequenceClassification", labels=("negative", "positive"))


OPTIMIZERS: dict[str, Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]] = {
    "adamw": partial(torch.optim.AdamW, fused=True),
    "adamw_8bit": bitsandbytes.optim.AdamW8bit,
    "sgd": partial(torch.optim.SGD, lr=1e-3, fused=True),
}


def allocated_peak(function: Callable[[], object]) -> int:
    """Return the highest sum of what the allocator handed out and did not get back while a function ran."""
    gc.collect()
    with profile(profile_memory=True, use_kineto=True) as profiler:
        result = function()
    del result
    assert profiler.kineto_results is not None
    events = profiler.kineto_results.events()
    live = peak = 0
    for _, change in sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"):
        live += change
        peak = max(peak, live)
    return peak


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes of the storages behind tensors, each once."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


def model_tensors(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Yield every tensor that can be reached from a model's modules, whatever it is called."""
    seen: set[int] = set()
    stack: list[Any] = [value for module in model.modules() for value in vars(module).values()]
    while stack:
        value = stack.pop()
        if id(value) in seen or isinstance(value, torch.nn.Module):
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            yield value
            stack.extend(vars(value).values())
        elif isinstance(value, dict):
            stack.extend(value.values())
        elif isinstance(value, list | tuple):
            stack.extend(value)
        elif type(value).__module__.startswith("bitsandbytes"):
            stack.extend(vars(value).values())


class RealRun:
    """A design on a base with weights, and the bare loop around it."""

    def __init__(
        self,
        attached: Attached,
        precision: str,
        *,
        batch_size: int,
        n_tokens: int,
        optimizer: str = "adamw",
    ) -> None:
        self.attached = attached
        self.model = attached.model
        self.precision = precision
        self.parameters = [p for group in attached.groups.values() for p in group]
        self.optimizer = OPTIMIZERS[optimizer](self.parameters)
        batch = task_of(attached.base.head).example_batch(
            attached.base, batch_size=batch_size, n_tokens=n_tokens, device=torch.device("cpu")
        )
        self.inputs, self.labels = batch.forward, batch.labels
        for name, tensor in (*self.inputs.items(), ("labels", self.labels)):
            tensor.fill_(7 if name.endswith("input_ids") else 1)
        if "attention_mask" in self.inputs:  # without any padding, models leave their mask out
            self.inputs["attention_mask"][:, n_tokens // 2 :] = 0

    def autocast(self) -> Any:
        return torch.autocast("cpu", dtype=torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def train(self) -> None:
        with self.autocast():
            loss = self._loss(self.model(**self.inputs))
        penalty = self.attached.penalty()
        if penalty is not None:
            loss = loss + penalty
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def evaluate(self) -> None:
        with torch.inference_mode(), self.autocast():
            self._score(self.model(**self.inputs))

    def training_peak(self) -> int:
        """Return the peak of the second step, when the optimizer has its state."""
        self.model.train()
        self.train()
        kept = [value for state in self.optimizer.state.values() for value in state.values()]
        states = [value for value in kept if isinstance(value, torch.Tensor)]
        states += self.attached.training_state().values()
        return self._resident(self.labels, *states) + allocated_peak(self.train)

    def evaluation_peak(self) -> int:
        self.model.eval()
        self.evaluate()
        labels = () if self.attached.base.head.labels else (self.labels,)
        return self._resident(*labels) + allocated_peak(self.evaluate)

    # Both hold all that the model returned, as tasks do: an encoder-decoder's has the encoder's output too.
    def _loss(self, outputs: Any) -> torch.Tensor:
        if self.attached.base.head.labels:
            return torch.nn.functional.cross_entropy(outputs.logits.float(), self.labels)
        return token_loss(outputs.logits, self.labels)

    def _score(self, outputs: Any) -> None:
        if self.attached.base.head.labels:
            outputs.logits.float().argmax(dim=-1)
        else:
            token_rows(outputs.logits, self.labels)

    def _resident(self, *more: torch.Tensor) -> int:
        return storage_bytes([*model_tensors(self.model), *self.inputs.values(), *more])


def counted(step: Callable[[], None]) -> int:
    """Return the floating-point operations of a step, by torch's own counter."""

    def raw(formula: Callable[..., int]) -> Callable[..., int]:
        def wrapped(*args: object, **kwargs: object) -> int:
            return formula(*args, **kwargs)

        wrapped._get_raw = True  # tensors, not shapes
        return wrapped

    missing = {op: raw(formula) for op, formula in flop_formulas().items() if op not in flop_registry}
    with FlopCounterMode(display=False, custom_mapping=missing) as counter:
        step()
    return counter.get_total_flops()


def padded_data(task: str, *, batch_size: int, n_tokens: int) -> PreparedData:
    """Return two batches of examples for a task, with padding in each: without any, models leave their mask out."""
    # Batches are sorted by length: one short example joins the long ones.
    lengths = np.full(2 * batch_size, n_tokens // 2)
    lengths[: max(1, batch_size - 1)] = n_tokens
    ids = np.arange(lengths.sum(), dtype=np.int32) % 300 + 5
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    per_token = task == "causal-lm"
    tokens = Ragged(values=ids, offsets=offsets)
    targets = ids.copy()
    targets[offsets[:-1]] = IGNORED
    classes = np.arange(len(lengths), dtype=np.int64) % 2
    segments = {} if per_token else {"token_type_ids": Ragged(values=np.zeros_like(ids), offsets=offsets)}
    split = Examples(
        inputs={"input_ids": tokens, **segments},
        labels=Ragged(values=targets, offsets=offsets, fill=IGNORED) if per_token else classes,
    )
    return PreparedData(
        task=task,
        metric="perplexity" if per_token else "accuracy",
        labels=() if per_token else HEAD.labels,
        train=split,
        validation=split,
        test=split,
        fingerprint="",
        max_length=n_tokens,
    )


def one_epoch(precision: str, batch_size: int, *, kernel: str = "sdpa", checkpointing: bool = False) -> Training:
    """Return a training with nothing left to choose."""
    return Training(
        epochs=1,
        batch_size=batch_size,
        evaluation_batch_size=batch_size,
        precision=precision,
        kernel=kernel,
        device="cpu",
        checkpointing=checkpointing,
    )
