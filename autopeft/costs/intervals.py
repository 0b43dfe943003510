"""Where in its layer a model computes: the intervals of a step, and what comes into the layer and its maps."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import nn
from torch.utils._pytree import tree_map

from autopeft.errors import ModelError
from autopeft.spec.model import LayerSummary

N_MARKS = 4
"""What is heard of a map: it begins, multiplies, has multiplied, ends."""
_LAST_SEQUENCE = 2**62
"""Above the numbers that autograd gives to what it records; what adds up gradients has the highest there is."""


class Described(NamedTuple):
    """A tensor without data, and without a storage to keep."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, value: Any) -> Any:
        """Return the description of a tensor; anything else as it is."""
        return cls(tuple(value.shape), value.stride(), value.dtype) if isinstance(value, torch.Tensor) else value

    def made(self, device: torch.device) -> torch.Tensor:
        """Return such a tensor in the mode that is active."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=device)


@dataclass(frozen=True, kw_only=True)
class Call:
    """How a model calls its layer.

    Attributes:
        args: What it gets in order, tensors described.
        kwargs: What it gets by name.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Intervals:
    """Where in a layer the computation is; entered around a step, it listens to the layer's modules."""

    def __init__(
        self, model: nn.Module, layer: LayerSummary, *, live: bool, order: Sequence[str] | None = None
    ) -> None:
        """Prepare to listen.

        Args:
            model: A model with this layer alone, with whatever is attached.
            layer: Its only layer.
            live: Whether something that trains lies below the layer, so that its input needs a gradient.
            order: What happens in the layer with nothing attached, in which the intervals are counted; of what is
                attached, some never lets a map multiply. None where this is what is to be found.
        """
        self._model = model
        self._layer = layer
        self._live = live
        self.call: Call
        roles = sorted(layer.roles.items(), key=lambda pair: pair[0])
        self._paths = {role: linear.path for role, linear in roles}
        self.n_stretches = N_MARKS * len(roles) + 3
        self.order: list[str] = []
        self._places = None if order is None else {name: place for place, name in enumerate(order, start=1)}
        self._multiplying: set[int] = set()
        self._weights: set[int] = set()
        self.reads_weights = False
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
                inner = _innermost(module)
                hooks.callback(module.register_forward_pre_hook(partial(self._read, role)).remove)
                hooks.callback(inner.register_forward_pre_hook(partial(self._multiply, role)).remove)
                multiplied = partial(self._pass, f"{role} has multiplied")
                hooks.callback(inner.register_forward_hook(multiplied, prepend=True).remove)
                hooks.callback(module.register_forward_hook(partial(self._pass, f"{role} ends")).remove)
                self._weights.update(weight.untyped_storage()._cdata for weight in inner.parameters(recurse=False))
                self.reads_weights |= any(weight.requires_grad for weight in inner.parameters(recurse=False))
            hooks.callback(layer.register_forward_hook(self._leave).remove)
            yield

    def here(self) -> tuple[bool, int]:
        """Return whether the backward pass runs, and the interval."""
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

    def see(self, storages: Iterable[int]) -> None:
        """Look at what an operator reads."""
        if not self.reads_weights and self._place not in self._multiplying:
            self.reads_weights = not self._weights.isdisjoint(storages)

    def _move(self, name: str, number: int | None = None) -> None:
        """Go on to the next interval, which began when autograd's numbers were at the present one, or at another."""
        self.order.append(name)
        self._place = len(self.order) if self._places is None else self._places[name]
        self._starts.append((_sequence_number() if number is None else number, self._place))

    def _enter(self, _module: nn.Module, args: Any, kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs.get("hidden_states")
        if hidden is None:
            raise ModelError(f"a layer must be called with hidden_states, but {self._layer.path} got {sorted(kwargs)}")
        described = tree_map(Described.of, (args, kwargs))
        self.call = Call(args=described[0], kwargs=described[1])
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
        number = _sequence_number()
        hidden = output[0] if isinstance(output, tuple) else output
        if self._live or hidden.requires_grad or not torch.is_grad_enabled():
            self._move("end", number)
            return None
        above = self._fresh(hidden, needs_gradient=True)  # where no head trains, something above the layer must
        self._move("end", number)  # not before: what the layer got goes when this returns, and is its own
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
        self._move(f"{role} multiplies")
        self._multiplying.add(self._place)

    def _pass(self, name: str, *_: Any) -> None:
        self._move(name)


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
