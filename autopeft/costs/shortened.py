"""A base on the meta device with fewer layers: what one layer costs can be seen on it at a fraction of the work."""

import copy
from dataclasses import replace

from torch import nn

from autopeft.models.base import Base
from autopeft.models.roles import stack_path
from autopeft.spec.model import LayerSummary


def is_uniform(base: Base) -> bool:
    """Return whether the layers are one stack of layers of equal shape, so that a few of them speak for all."""
    return len({_shape_of(layer) for layer in base.summary.layers}) == 1


def shorten(base: Base, n_layers: int) -> Base:
    """Return a copy of an unquantized base on the meta device that has its first layers only.

    Everything that is not a layer is copied too; tensors without data take no memory.
    """
    path = layers_path(base)
    parent, _, name = path.rpartition(".")
    place = base.model.get_submodule(parent)
    layers = base.model.get_submodule(path)
    assert isinstance(layers, nn.ModuleList)
    try:
        setattr(place, name, layers[:n_layers])
        model = copy.deepcopy(base.model)
    finally:
        setattr(place, name, layers)
    model.config.get_text_config().num_hidden_layers = n_layers
    return Base(
        model=model,
        summary=replace(base.summary, layers=base.summary.layers[:n_layers]),
        quantization=base.quantization,
        device=base.device,
        head=base.head,
        kernel=base.kernel,
    )


def layers_path(base: Base) -> str:
    """Return the path of the list of layers."""
    first = base.summary.layers[0]
    return f"{stack_path(first)}.{first.path.split('.')[-2]}".lstrip(".")


def _shape_of(layer: LayerSummary) -> tuple[object, ...]:
    """Return what makes two layers alike: everything but where they are."""
    inside = len(layer.path)
    roles = tuple((role, replace(linear, path=linear.path[inside:])) for role, linear in layer.roles.items())
    return layer.stack, roles, tuple(replace(norm, path=norm.path[inside:]) for norm in layer.norms)
