"""Which module made a storage: the one that runs, or the one whose operation autograd takes back."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from autopeft.spec.model import ModelSummary

_LAST_SEQUENCE = 2**62
"""Above the numbers that autograd gives to what it records; what adds up gradients has the highest there is."""


class Attribution:
    """Names the module that is at work, and the owner of a tensor that is there all the time.

    A module is named by its role where it has one, all layers as one: `layers.*.mlp_up`; otherwise by its path.
    """

    def __init__(self, model: nn.Module, summary: ModelSummary) -> None:
        """Name the modules of a model with whatever is attached."""
        self._model = model
        self._names = {module: _name(path, summary) for path, module in model.named_modules()}
        self._stack: list[str] = []
        self._starts: list[tuple[int, str]] = []
        self._owners: dict[int, str] = {}

    def __call__(self, key: int) -> str:
        """Return the name of the module that owns a storage by its key, or else is at work; `loss` where none is."""
        if key in self._owners:
            return self._owners[key]
        if self._stack:
            return self._stack[-1]
        if torch._C._current_graph_task_id() == -1:
            return "loss"
        node: Any = torch._C._current_autograd_node()
        number = _LAST_SEQUENCE if node is None else node._sequence_nr()
        found = bisect_right(self._starts, number, key=lambda start: start[0]) - 1
        return self._starts[found][1] if found >= 0 else "loss"

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Know which module is at work inside of the block, and whose the tensors are that the model has now."""
        with ExitStack() as hooks:
            for module, name in self._names.items():
                held = (*module._parameters.values(), *module._buffers.values(), *_scales(module))
                for tensor in held:
                    if tensor is not None:
                        self._owners.setdefault(tensor.untyped_storage()._cdata, name)
                hooks.callback(module.register_forward_pre_hook(self._enter).remove)
                hooks.callback(module.register_forward_hook(self._leave, always_call=True).remove)
            yield

    def own(self, tensors: Iterable[torch.Tensor], name: str) -> None:
        """Name the owner of tensors that no module made."""
        self._owners |= {tensor.untyped_storage()._cdata: name for tensor in tensors}

    def _enter(self, module: nn.Module, _args: Any) -> None:
        self._stack.append(self._names[module])
        self._note()

    def _leave(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        self._stack.pop()
        self._note()

    def _note(self) -> None:
        number: int = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
        self._starts.append((number, self._stack[-1] if self._stack else "loss"))


def _scales(module: nn.Module) -> Iterator[torch.Tensor]:
    """Yield what quantized weights keep outside of parameters."""
    state = getattr(module._parameters.get("weight"), "quant_state", None)
    for owner in (state, getattr(state, "state2", None), getattr(module, "state", None)):
        yield from (value for value in getattr(owner, "__dict__", {}).values() if isinstance(value, torch.Tensor))


def _name(path: str, summary: ModelSummary) -> str:
    layer = next((layer for layer in summary.layers if f"{path}.".startswith(f"{layer.path}.")), None)
    if layer is None:
        return path or "model"
    layers = f"{layer.stack}.layers.*" if layer.stack else "layers.*"
    for role, linear in layer.roles.items():
        if f"{path}.".startswith(f"{linear.path}."):
            return f"{layers}.{role}"
    return f"{layers}{path[len(layer.path) :]}"
