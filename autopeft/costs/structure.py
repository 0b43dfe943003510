"""What makes two layers the same to a dry run: modules, tensors by shape, settings and hooks, but not their index."""

import re
import types
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

_DEEPEST = 4
"""Levels of objects in objects that are looked into."""
_PLAIN = (bool, int, float, complex, bytes, type(None), torch.dtype, torch.device, torch.Size, type)
_INDEX = re.compile(r"(?<=\.)\d+(?=\.)")
"""Of a layer, in a path."""
_INDEX_NAMES = frozenset(("layer_idx", "layer_id", "layer_index", "layer_number", "index"))
_SET_BY_FORWARD = frozenset(("compute_type_is_set", "compute_dtype"))
"""What a 4-bit layer notes when it first runs: it tells those that an earlier dry run ran from the others."""
_OWN_NAMES = frozenset(vars(nn.Module())) - {"_forward_hooks", "_forward_pre_hooks", "training"}
"""What every module has, and what is looked at by other ways or says nothing."""
_IGNORED = _OWN_NAMES | _INDEX_NAMES | _SET_BY_FORWARD


def structures(layers: Sequence[nn.Module]) -> list[int]:
    """Return a number for each layer: the same for layers that a dry run can't tell apart.

    Layers that differ in more than was needed get different numbers: that costs time, and nothing else.
    """
    counts = Counter(id(tensor) for layer in layers for tensor in {id(t): t for t in _tensors(layer)}.values())
    shared = {key for key, count in counts.items() if count > 1}
    seen: dict[Any, int] = {}
    known: dict[int, Any] = {}
    return [seen.setdefault(_of_layer(layer, _Reader(shared, known)), len(seen)) for layer in layers]


def _tensors(layer: nn.Module) -> list[torch.Tensor]:
    return [*layer.parameters(), *layer.buffers()]


def _of_layer(layer: nn.Module, reader: "_Reader") -> tuple[Any, ...]:
    return tuple((name, reader.module(module)) for name, module in layer.named_modules())


class _Reader:
    """Turns values into others that are equal where the values mean the same, and can be hashed."""

    def __init__(self, shared: set[int], known: dict[int, Any]) -> None:
        self._shared = shared
        self._known = known

    def module(self, module: nn.Module) -> tuple[Any, ...]:
        """Return what a module is without the modules inside of it."""
        held = {**module._parameters, **module._buffers}
        settings = {
            name: value
            for name, value in vars(module).items()
            if name not in _IGNORED and not (isinstance(value, dict) and not value)
        }
        return (
            type(module),
            tuple((name, self.value(tensor)) for name, tensor in held.items()),
            tuple((name, self.value(value)) for name, value in settings.items()),
        )

    def value(self, value: Any, depth: int = 0) -> Any:
        """Return what a value means."""
        if isinstance(value, str):
            return _INDEX.sub("*", value)  # a path, it may be
        if isinstance(value, _PLAIN):
            return value
        if isinstance(value, torch.Tensor):
            same = id(value) if id(value) in self._shared else None
            state = getattr(value, "quant_state", None)
            return (same, value.shape, value.stride(), value.dtype, value.requires_grad, type(value), id(type(state)))
        if isinstance(value, nn.Module) or depth == _DEEPEST:
            return type(value)
        if isinstance(value, Mapping):
            # keys may be the numbers of hooks, which count up
            names = value.keys() if all(isinstance(key, str) for key in value) else range(len(value))
            return tuple(zip(names, (self.value(each, depth + 1) for each in value.values()), strict=True))
        if isinstance(value, list | tuple):
            return tuple(self.value(each, depth + 1) for each in value)
        if isinstance(value, set | frozenset):
            return frozenset(self.value(each, depth + 1) for each in value)
        return self._object(value, depth)

    def _object(self, value: Any, depth: int) -> Any:
        if isinstance(value, partial):
            return tuple(self.value(each, depth + 1) for each in (value.func, value.args, value.keywords))
        if isinstance(value, types.MethodType):
            return (value.__func__.__qualname__, self.value(value.__self__, depth + 1))
        if isinstance(value, types.FunctionType):
            cells = tuple(self.value(cell.cell_contents, depth + 1) for cell in value.__closure__ or ())
            return (value.__module__, value.__qualname__, cells, self.value(value.__defaults__, depth + 1))
        if id(value) not in self._known:
            inside = {name: each for name, each in getattr(value, "__dict__", {}).items() if name not in _INDEX_NAMES}
            self._known[id(value)] = (type(value), self.value(inside, depth + 1))
        return self._known[id(value)]
