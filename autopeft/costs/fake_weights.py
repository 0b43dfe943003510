"""Puts fake tensors in the place of a meta model's weights, and takes them out again.

Fake tensors have no data either, but say that they are on the device that the training will use.
Only so do torch and the model decide as they will then: autocast, dropout and attention choose their
kernels by the device, which the meta device would answer wrongly.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from autopeft.costs.operators import FakeOperators
from autopeft.costs.quantized import PackedState
from autopeft.models.technique import DISPLACED

Replace = Callable[[Any], Any]
"""From a meta tensor to the fake one in its place, of the same kind: a tensor or a parameter."""


@contextmanager
def fake_weights(model: nn.Module, operators: FakeOperators) -> Iterator[Replace]:
    """Swap every parameter and buffer for a fake one inside; one that is shared stays shared.

    Args:
        model: A model on the meta device, with whatever is attached.
        operators: Makes the fake tensors.

    Yields:
        A function that returns the fake tensor of a meta tensor.
    """
    made: dict[int, Any] = {}

    def replace(tensor: Any) -> Any:
        if id(tensor) not in made:
            made[id(tensor)] = operators.empty_like(tensor)
        return made[id(tensor)]

    with ExitStack() as undo:
        for module in model.modules():
            _swap_quantized(module, replace, undo)
            held: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
            for tensors in held:
                for name, tensor in tensors.items():
                    if tensor is not None:
                        undo.callback(tensors.__setitem__, name, tensor)
                        tensors[name] = replace(tensor)
            if isinstance(module, nn.RNNBase):  # which hands its kernel a list of its own
                undo.callback(setattr, module, "_flat_weights", module._flat_weights)
                module._flat_weights = [replace(weight) for weight in module._flat_weights]
        yield replace


def tensors_of(model: nn.Module) -> Iterator[torch.Tensor]:
    """Yield every tensor that a model holds: parameters, buffers, and the scales of quantized weights."""
    yield from model.parameters()
    yield from model.buffers()
    yield from getattr(model, DISPLACED, ())
    for module in model.modules():
        weight: Any = getattr(module, "weight", None)
        state = getattr(weight, "quant_state", None)
        for owner in (state, getattr(state, "state2", None), getattr(module, "state", None), weight):
            for name in ("absmax", "code", "offset", "CB", "SCB"):
                value = getattr(owner, name, None)
                if isinstance(value, torch.Tensor):
                    yield value


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes of the storages of tensors; one that several share counts once."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


def _swap_quantized(module: nn.Module, replace: Replace, undo: ExitStack) -> None:
    """Carry over what bitsandbytes keeps outside of parameters and buffers."""
    weight: Any = module._parameters.get("weight")
    state = getattr(weight, "quant_state", None)
    if isinstance(state, PackedState):
        fake: Any = replace(weight)
        fake.__class__ = _fake_class(type(weight).__name__)
        fake.quant_state = _replaced(state, replace)
    elif getattr(weight, "SCB", None) is not None:
        # Such a layer moves weight and scales into its state at the first forward: give it a state to keep.
        fake = replace(weight)
        fake.__class__ = _fake_class(type(weight).__name__)
        fake.CB = fake.SCB = None
        layer: Any = module
        undo.callback(setattr, layer, "state", layer.state)
        layer.state = copy.copy(layer.state)
        layer.state.CB, layer.state.SCB = fake.detach(), replace(weight.SCB)


def _replaced(state: PackedState, replace: Replace) -> PackedState:
    """Return a state on fake tensors."""
    tensors = {"absmax": replace(state.absmax), "code": replace(state.code)}
    if state.offset is not None and (scales := state.state2) is not None:
        nested = dataclasses.replace(scales, absmax=replace(scales.absmax), code=replace(scales.code))
        return dataclasses.replace(state, **tensors, offset=replace(state.offset), state2=nested)
    return dataclasses.replace(state, **tensors)


@cache
def _fake_class(name: str) -> type[FakeTensor]:
    """Return a class of fake tensors with the name of a quantized weight's: peft asks for the name."""
    return type(name, (FakeTensor,), {})
