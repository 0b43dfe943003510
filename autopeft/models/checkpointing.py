"""Gradient checkpointing: a layer keeps its input alone, and computes the rest again in the backward pass.

It saves the activations of all layers but one, and costs one more forward pass. Losses and gradients are the
same, bit for bit: dropout draws the same masks again. Every technique goes with it, also those that give a layer
keys and values or change what it reads.

Source: Chen et al. 2016 (arXiv:1604.06174); the variant of torch that is not reentrant, which needs no input that
wants a gradient.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from autopeft.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Restore = Callable[[nn.Module, str], None]
"""Remembers an attribute of a module, to give it its value back later."""
RUN: Callable[..., Any] = partial(checkpoint, use_reentrant=False)
"""Calls a layer on its arguments so that it keeps the arguments alone."""


def check_checkpointing(model: "PreTrainedModel") -> None:
    """Check that a model's layers can be computed again.

    Raises:
        ModelError: The architecture has no support for it.
    """
    if not model.supports_gradient_checkpointing or not _checkpointed(model):
        raise ModelError(
            f"gradient checkpointing needs layers that transformers can compute again, but {type(model).__name__} has "
            "none; set training.checkpointing to false"
        )


def checkpoint_layers(model: "PreTrainedModel", restore: Restore, run: Callable[..., Any] = RUN) -> None:
    """Make a model's layers compute their activations again in the backward pass, in training mode.

    Source: transformers' `GradientCheckpointingLayer`, which says what its two attributes mean. Its
        `activation_checkpointing_enable` sets them too, but also makes embeddings ask for a gradient that frozen
        ones do not need here, and does not take them off again.

    Args:
        model: The model, with whatever is attached.
        restore: Called with each module and attribute before it changes.
        run: What calls a layer.

    Raises:
        ModelError: The architecture has no support for it.
    """
    check_checkpointing(model)
    for module in _checkpointed(model):
        for name, value in (("gradient_checkpointing", True), ("_gradient_checkpointing_func", run)):
            restore(module, name)
            setattr(module, name, value)


def _checkpointed(model: nn.Module) -> list[nn.Module]:
    """Return the modules that can be told to: layers, and stacks that do it for their layers."""
    return [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
