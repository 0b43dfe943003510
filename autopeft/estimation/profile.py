"""What a layer adds to memory, stretch by stretch, as a dry run of a model of one layer shows it.

A step is cut into stretches: before the layer, inside of it from one linear map's beginning or end to the next,
after it (head and loss); in the backward pass the same ones in reverse, told apart by the place in the forward pass
where autograd recorded what it runs. Of each stretch are known what it leaves behind and how far it goes above its
start, and which part of both grows with the length of the sequences: of such stretches the timeline of any number of
layers can be put together.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Self
from weakref import ref

import numpy as np
import torch
from torch import nn

from autopeft.errors import ModelError
from autopeft.estimation.curve import Bytes, Curve
from autopeft.estimation.dry_run import DryRun, Machine
from autopeft.estimation.kernels import is_attention
from autopeft.estimation.tracker import Category, StorageTracker
from autopeft.models.attach import Attached
from autopeft.spec.cost import Workload
from autopeft.spec.model import LayerSummary

_LAST_SEQUENCE = 2**62
"""Above the numbers that autograd gives to what it records; what adds up gradients has the highest there is."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The passes of a step of a model of one layer.

    Attributes:
        curve: [forward, backward, evaluation] x stretches, which are those before, in and after the layer, always in
            the order of the forward pass.
        growth: The part of it that grows with the length of the sequences.
        kept: Bytes of the maps' inputs that autograd keeps after the forward pass, by role; roles that read the same
            storage have the same `sharing`.
        read: Bytes of the maps' inputs, by role.
        diverted: The roles whose maps multiply something else than what comes in: it was changed on the way.
        sharing: The first role that reads the same input, by role.
        input_bytes: Size of the layer's input in the training step, and in the evaluation step.
        input_stays: Whether what comes before the layers holds the first one's input until the last one is done.
        order: Where stretches end, in the order of the forward pass.
        start_bytes: What is there when the training step begins, and when the evaluation step does.
        released: The stretch in which a map's input goes, by role: in the forward pass, or in the backward pass where
            it is kept.
    """

    curve: Curve
    growth: Curve
    kept: dict[str, int]
    read: dict[str, int]
    diverted: frozenset[str]
    sharing: dict[str, str]
    released: dict[str, int]
    input_bytes: tuple[int, int]
    input_stays: bool
    order: tuple[str, ...]
    start_bytes: tuple[int, int]


class Stretches:
    """Where in a layer the computation is; entered around a step, it listens to the layer's modules."""

    def __init__(self, model: nn.Module, layer: LayerSummary, *, live: bool) -> None:
        """Prepare to listen.

        Args:
            model: A model with this layer alone, with whatever is attached.
            layer: Its only layer.
            live: Whether something that trains lies below the layer, so that its input needs a gradient.
        """
        self._model = model
        self._layer = layer
        self._live = live
        roles = sorted(layer.roles.items(), key=lambda pair: pair[0])
        self._paths = {role: linear.path for role, linear in roles}
        self.n_stretches = 2 * len(roles) + 3
        self.order: list[str] = []
        self.input_bytes = 0
        self.input_stays: bool | None = None
        self._place = 0
        self._starts: list[tuple[int, int]] = []
        self._inputs: dict[str, Any] = {}
        self.read: dict[str, int] = {}
        self.sharing: dict[str, str] = {}
        self.released: dict[str, int] = {}
        self.kept: dict[str, int] = {}
        self.diverted: set[str] = set()
        self._backward = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Know the place inside of the block."""
        with ExitStack() as hooks:
            layer = self._model.get_submodule(self._layer.path)
            hooks.callback(layer.register_forward_pre_hook(self._enter, with_kwargs=True).remove)
            for role, path in self._paths.items():
                module = self._model.get_submodule(path)
                hooks.callback(module.register_forward_pre_hook(partial(self._read, role)).remove)
                hooks.callback(module.register_forward_hook(partial(self._pass, role)).remove)
                hooks.callback(_innermost(module).register_forward_pre_hook(partial(self._multiply, role)).remove)
            hooks.callback(layer.register_forward_hook(self._leave).remove)
            yield

    def here(self) -> tuple[bool, int]:
        """Return whether the backward pass runs, and the stretch."""
        if torch._C._current_graph_task_id() == -1:
            if self._place == self.n_stretches - 1 and self.input_stays is None:
                self.input_stays = self._input() is not None
            return False, self._place
        if not self._backward:
            self._backward = True
            self.kept = {role: self.read[role] for role, storage in self._inputs.items() if storage() is not None}
        node: Any = torch._C._current_autograd_node()
        number = _LAST_SEQUENCE if node is None else node._sequence_nr()
        if number < _LAST_SEQUENCE:
            found = bisect_right(self._starts, (number, _LAST_SEQUENCE)) - 1
            self._place = self._starts[found][1] if found >= 0 else 0
        return True, self._place

    def _move(self, name: str) -> None:
        self.order.append(name)
        self._place = len(self.order)
        self._starts.append((_sequence_number(), self._place))

    def _enter(self, _module: nn.Module, args: Any, kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs.get("hidden_states")
        if hidden is None:
            raise ModelError(f"a layer must be called with hidden_states, but {self._layer.path} got {sorted(kwargs)}")
        fresh = self._fresh(hidden)
        self.input_bytes = fresh.untyped_storage().nbytes()
        self._input = ref(hidden.untyped_storage())
        self._move("start")
        return ((fresh, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": fresh})

    def _fresh(self, hidden: torch.Tensor, *, needs_gradient: bool = False) -> torch.Tensor:
        """Return an input that only the layer holds, as it gets from a layer below; what is before it keeps its own."""
        if not torch.is_grad_enabled() or not (self._live or needs_gradient or hidden.requires_grad):
            return torch.empty_like(hidden)
        source = hidden if hidden.requires_grad else torch.zeros((), device=hidden.device, requires_grad=True)
        fresh: torch.Tensor = _Fresh.apply(source, hidden)  # type: ignore[no-untyped-call]
        return fresh

    def _leave(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        self._move("end")
        hidden = output[0] if isinstance(output, tuple) else output
        if self._live or hidden.requires_grad or not torch.is_grad_enabled():
            return None
        above = self._fresh(hidden, needs_gradient=True)  # where no head trains, something above the layer must
        return (above, *output[1:]) if isinstance(output, tuple) else above

    def _read(self, role: str, _module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        self._move(f"{role} begins")
        storage = args[0].untyped_storage()
        shared = (first for first, known in self._inputs.items() if known() is storage)
        self.sharing[role] = next(shared, role)
        self._inputs[role] = ref(storage, lambda _: self.released.update({role: self._place}))
        self.read[role] = storage.nbytes()

    def _multiply(self, role: str, _module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if self._inputs[role]() is not args[0].untyped_storage():
            self.diverted.add(role)

    def _pass(self, role: str, *_: Any) -> None:
        self._move(f"{role} ends")


def _sequence_number() -> int:
    """Return the number that autograd gives to what it records next."""
    number: int = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
    return number


def _innermost(module: nn.Module) -> nn.Module:
    """Return the map of the base inside of whatever wraps it."""
    while isinstance(inner := getattr(module, "base_layer", None), nn.Module):
        module = inner
    return module


class _Fresh(torch.autograd.Function):
    """A tensor of another's shape that needs a gradient, and hands it down where that one does."""

    @staticmethod
    def forward(ctx: Any, source: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        ctx.hands_down = source is like
        return torch.empty_like(like)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, None]:
        gradients[0].detach()  # one operator more, so that the tracker settles a sum before its result goes
        return gradients[0] if ctx.hands_down else None, None


class StretchTracker(StorageTracker):  # type: ignore[no-untyped-call]
    """Follow live bytes by stretch, and what of them grows with the length of the sequences.

    What is made of the batch does, and what is made of that; not so what has the shape of a weight, or of something
    that was made of weights alone: those are its gradients.
    """

    def __init__(self, *, stretches: Stretches, **settings: Any) -> None:
        """Start at zero; `settings` are those of `StorageTracker`."""
        super().__init__(**settings)
        self._stretches = stretches
        self.curves = {backward: Curve.flat(stretches.n_stretches) for backward in (False, True)}
        self.growths = {backward: Curve.flat(stretches.n_stretches) for backward in (False, True)}
        self._at: tuple[bool, int] | None = None
        self._start_bytes = 0
        self._start_growing_bytes = 0
        self._start_flops = np.zeros((2, 2))
        self.first_bytes = 0
        self._grows = False
        self._growing: dict[int, int] = {}
        self._growing_bytes = 0
        self._growing_flops = np.zeros(2)
        self._weights: set[tuple[int, ...]] = set()

    def register(self, tensors: Iterable[torch.Tensor], category: Category) -> None:
        """Count what is there before the step: weights and the batch."""
        tensors = list(tensors)
        super().register(tensors, category)
        for tensor in tensors:
            if category == "activations":
                self._grow(tensor)
            else:
                self._weights.update((tuple(tensor.shape), tuple(reversed(tensor.shape))))

    def __enter__(self) -> Any:
        """Start from what is registered."""
        self._start_bytes = self.first_bytes = self._total_bytes
        self._start_growing_bytes = self._growing_bytes
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator in its stretch."""
        here = self._stretches.here()
        if here != self._at:
            self._settle_sum()
            self.close()
            self._at = here
        self._grows = any(key in self._growing for key in _storages(args))
        return super().__torch_dispatch__(func, types, args, kwargs)

    def close(self) -> None:
        """End the present stretch."""
        n_flops = np.stack([self._n_flops(), self._growing_flops])
        if self._at is not None:
            backward, place = self._at
            curve, growth = self.curves[backward], self.growths[backward]
            curve.net[place] += self._total_bytes - self._start_bytes
            growth.net[place] += self._growing_bytes - self._start_growing_bytes
            for each, more in zip((curve, growth), n_flops - self._start_flops, strict=True):
                each.flops[:, place] += more
        self._start_bytes, self._start_growing_bytes = self._total_bytes, self._growing_bytes
        self._start_flops = n_flops

    def _n_flops(self) -> Bytes:
        attention = sum(count for packet, count in self.flops.items() if is_attention(packet))
        return np.array((sum(self.flops.values()), attention), dtype=float)

    def _count(self, packet: Any, n_flops: int) -> None:
        super()._count(packet, n_flops)
        if self._grows:
            self._growing_flops += (n_flops, n_flops * is_attention(packet))

    def _follow(self, tensor: torch.Tensor) -> None:
        super()._follow(tensor)
        shape = tuple(tensor.shape)
        if not self._grows:
            self._weights.update((shape, tuple(reversed(shape))))
        elif shape not in self._weights:
            self._grow(tensor)

    def _grow(self, tensor: torch.Tensor) -> None:
        key = tensor.untyped_storage()._cdata
        if key not in self._growing:
            self._growing[key] = self._storages[key].n_bytes
            self._growing_bytes += self._growing[key]

    def _forget(self, key: int) -> None:
        super()._forget(key)
        self._growing_bytes -= self._growing.pop(key, 0)

    def _note(self, total_bytes: int, scratch_bytes: int = 0) -> None:
        super()._note(total_bytes, scratch_bytes)
        if self._at is not None:
            backward, place = self._at
            high, above = self.curves[backward].high, total_bytes + scratch_bytes - self._start_bytes
            if above > high[place]:
                high[place] = above
                self.growths[backward].high[place] = self._growing_bytes - self._start_growing_bytes


def _storages(values: Iterable[Any]) -> Iterator[int]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value.untyped_storage()._cdata
        elif isinstance(value, tuple | list):
            yield from _storages(value)


class ProfilingRun(DryRun):
    """A dry run that keeps the curves of the step that it ran last."""

    def __init__(self, attached: Attached, machine: Machine, *, live: bool) -> None:
        super().__init__(attached, machine)
        self._live = live
        self.stretches: Stretches
        self._tracker: StretchTracker

    def tracker_class(self, **settings: Any) -> StretchTracker:  # type: ignore[override]
        """Make the tracker of one step."""
        self._tracker = StretchTracker(stretches=self.stretches, **settings)
        return self._tracker

    def __enter__(self) -> Self:
        """Swap the weights; a model in which nothing trains gets a parameter of no size, so that the step runs."""
        entered = super().__enter__()
        if not self._trainable:
            self._trainable = [nn.Parameter(torch.empty(0))]
        return entered

    def profile(self, workload: Workload) -> Profile:
        """Run both steps at the largest batches."""
        layer = self._attached.base.summary.layers[0]
        shape = {"n_tokens": workload.max_tokens}
        self.stretches = Stretches(self._model, layer, live=self._live)
        with self.stretches.listening():
            self.training_step(batch_size=workload.batch_size, **shape)
            self._tracker.close()
        training, tracker = self.stretches, self._tracker
        self.stretches = Stretches(self._model, layer, live=False)
        with self.stretches.listening():
            self.evaluation_step(batch_size=workload.evaluation_batch_size, **shape)
            self._tracker.close()
        evaluated = self.stretches
        return Profile(
            curve=Curve.stack([tracker.curves[False], tracker.curves[True], self._tracker.curves[False]]),
            growth=Curve.stack([tracker.growths[False], tracker.growths[True], self._tracker.growths[False]]),
            kept=training.kept,
            read=training.read,
            diverted=frozenset(training.diverted),
            sharing=training.sharing,
            released=training.released,
            input_bytes=(training.input_bytes, evaluated.input_bytes),
            input_stays=bool(training.input_stays),
            order=tuple(training.order),
            start_bytes=(tracker.first_bytes, self._tracker.first_bytes),
        )
