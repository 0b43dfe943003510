"""A design attached to a few of the layers that repeat: what those that are left out would have is written down.

Attaching to every layer of a deep model takes longer than the steps of a dry run, which runs a few of the layers
alone. Which layers are alike is known before: they are alike in the base, and the same blocks are in them.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from autopeft.costs.fake_weights import tensors_of
from autopeft.costs.repeats import N_FIRST, Repeat, kinds_of_layers, repeats_among
from autopeft.models.attach import Attached, attach
from autopeft.models.base import Base
from autopeft.spec.block import is_foreign
from autopeft.spec.design import Design


@dataclass(frozen=True, kw_only=True)
class Unattached:
    """What a design would have in the layers that it was not attached to.

    Attributes:
        repeats: Whose layers they are.
        frozen: Stand-ins on the meta device for the storages that do not train, the base's own among them.
        trainable: Stand-ins for the parameters that train.
        exported_bytes: What of an export would be theirs.
    """

    repeats: tuple[Repeat, ...] = ()
    frozen: Sequence[torch.Tensor] = ()
    trainable: Sequence[torch.Tensor] = ()
    exported_bytes: int = 0


class Layers:
    """The layers of a base, each with a number that says which others are like it."""

    def __init__(self, base: Base) -> None:
        """Compare all layers of a base with nothing attached."""
        self._base = base
        self._index = {layer.path: index for index, layer in enumerate(base.summary.layers)}
        self._kinds = kinds_of_layers(base.model, base.summary)

    def repeats(self, design: Design) -> tuple[Repeat, ...]:
        """Return which layers need not be attached to: none where a technique is not known to work layer by layer."""
        if any(is_foreign(kind) for kind in design.kinds):
            return ()
        chosen = [frozenset(block.layer_indices(self._base.summary)) for block in design.blocks]
        kinds: dict[str, list[Any]] = {}
        for path, numbers in self._kinds.items():
            indices = [self._index[f"{path}.{at}"] for at in range(len(numbers))]
            blocks = [tuple(index in layers for layers in chosen) for index in indices]
            kinds[path] = list(zip(numbers, blocks, strict=True))
        return repeats_among(kinds)


@contextmanager
def attached_to_few(
    base: Base, design: Design, repeats: Sequence[Repeat], *, checkpointing: bool
) -> Iterator[tuple[Attached, Unattached] | None]:
    """Attach a design to the layers that a dry run runs, until the block ends.

    Args:
        base: On the meta device, with nothing attached; the layers that are left out are out of its model inside.
        design: Checked already.
        repeats: From `Layers.repeats`.
        checkpointing: As `attach` takes it.

    Yields:
        What is attached, and what the other layers would have; None where the design keeps something for a step
        that is of all layers at once, such as AdaLoRA's masks.
    """
    own = {id(tensor) for tensor in tensors_of(base.model)}
    absent = [base.model.get_submodule(f"{repeat.path}.{at}") for repeat in repeats for at in repeat.skipped]
    with (
        _left_out(base, repeats) as few,
        attach_meta(few, _fewer(design, base, few), checkpointing=checkpointing) as attached,
    ):
        if attached.training_state() or attached.penalty() is not None:
            yield None
        else:
            yield attached, _unattached(attached, repeats, absent, own)


def attach_meta(base: Base, design: Design, *, checkpointing: bool) -> Attached:
    """Attach a design to a base on the meta device: also what a library copies of a layer is on it then."""
    with torch.device("meta"):
        return attach(base, design, checkpointing=checkpointing)


@contextmanager
def _left_out(base: Base, repeats: Sequence[Repeat]) -> Iterator[Base]:
    """Yield the base without the layers of repeats that need not be run; those that stay keep their paths."""
    with ExitStack() as undo:
        absent = set()
        for repeat in repeats:
            layers = base.model.get_submodule(repeat.path)
            for index in repeat.skipped:
                layer = layers._modules[str(index)]
                undo.callback(layers._modules.__setitem__, str(index), layer)
                layers._modules[str(index)] = _Absent(layer)
                absent.add(f"{repeat.path}.{index}")
        kept = tuple(layer for layer in base.summary.layers if layer.path not in absent)
        yield Base(
            model=base.model,
            summary=replace(base.summary, layers=kept),
            quantization=base.quantization,
            device=base.device,
            head=base.head,
            kernel=base.kernel,
        )


class _Absent(nn.Module):
    """In the place of a layer, with its attributes and without its parameters."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        vars(self)["layer"] = layer  # not as a child

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["layer"], name)


def _fewer(design: Design, base: Base, few: Base) -> Design:
    """Return a design with its layers numbered as in a base of fewer layers."""
    number = {layer.path: index for index, layer in enumerate(few.summary.layers)}
    known = [number.get(layer.path) for layer in base.summary.layers]
    blocks = (
        block
        if block.layers == "all"
        else block.model_copy(update={"layers": tuple(at for i in block.layers if (at := known[i]) is not None)})
        for block in design.blocks
    )
    return replace(design, blocks=tuple(blocks))


def _unattached(
    attached: Attached, repeats: Sequence[Repeat], absent: Sequence[nn.Module], own: set[int]
) -> Unattached:
    """Return what the layers that were left out have, and would get: what the layer got that is like them."""
    training = {id(parameter) for group in attached.groups.values() for parameter in group}
    exported = attached.exported_tensors()
    frozen = [tensor for layer in absent for tensor in tensors_of(layer)]
    trainable: list[torch.Tensor] = []
    exported_bytes = 0
    for repeat in repeats:
        n_more = len(repeat.skipped) // repeat.period
        for place in range(repeat.period):
            path = f"{repeat.path}.{repeat.start + (N_FIRST - 1) * repeat.period + place}"
            layer = attached.model.get_submodule(path)
            exported_bytes += n_more * sum(t.nbytes for name, t in exported.items() if name.startswith(f"{path}."))
            brought = [tensor for tensor in tensors_of(layer) if id(tensor) not in own]
            storages = {tensor.untyped_storage()._cdata: tensor for tensor in brought}
            for tensor in storages.values():
                if id(tensor) in training:
                    trainable.extend(torch.empty_like(tensor, device="meta") for _ in range(n_more))
                else:
                    frozen.extend(_of_size(tensor.untyped_storage().nbytes()) for _ in range(n_more))
    return Unattached(repeats=tuple(repeats), frozen=frozen, trainable=trainable, exported_bytes=exported_bytes)


def _of_size(n_bytes: int) -> torch.Tensor:
    return torch.empty(n_bytes, dtype=torch.uint8, device="meta")
