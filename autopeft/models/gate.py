"""UniPELT's gate: how much of what a technique adds is let through, learned from what the technique reads.

With x the input of the submodule, [batch, tokens, d], w [d] and c a learned map to one number, and sigma the
sigmoid, an example's gate is

    g = mean over its tokens of sigma(w x + c)

and what the submodule adds is multiplied by g. Both w and c start at zero, so that g = 0.5 in the first step.

Source: Mao et al. 2022 (arXiv:2110.07577), section 3.2.
Omits: the mean, in layers whose tokens see earlier ones only: there it would tell a token of those after it, which
training would learn to use and generation lacks. Each token has the gate of its own there.
"""

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from autopeft.models.roles import stack_path
from autopeft.models.technique import Site
from autopeft.spec.model import ModelSummary


class Gate(nn.Module):
    """Maps [batch, tokens, width] to a factor in (0, 1): [batch, 1, 1], or [batch, tokens, 1] where `causal`."""

    def __init__(self, width: int, *, causal: bool = False, mask: "TokenMask | None" = None) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.causal = causal
        self._mask = mask or TokenMask()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the gate, in the dtype of its input; padding does not count where the model's mask is known."""
        gates = torch.sigmoid(self.linear(hidden.to(self.linear.weight.dtype)))
        if not self.causal:
            mask = self._mask.of(hidden)
            if mask is None:
                gates = gates.mean(dim=1, keepdim=True)
            else:
                real = mask[:, :, None].to(gates.dtype)
                gates = (gates * real).sum(dim=1, keepdim=True) / real.sum(dim=1, keepdim=True).clamp(min=1)
        return gates.to(hidden.dtype)


class TokenMask:
    """The attention mask of the forward that runs: layers get it in another form, or none at all."""

    def __init__(self) -> None:
        self._mask: torch.Tensor | None = None

    def read(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Remember the mask that a stack of layers is called with; a forward pre-hook."""
        inputs = {**dict(zip(signature(module.forward).parameters, args, strict=False)), **kwargs}
        mask = inputs.get("attention_mask")
        # kept after the forward: a checkpointed layer is computed again in the backward
        self._mask = mask if isinstance(mask, torch.Tensor) and mask.dim() == 2 else None

    def of(self, hidden: torch.Tensor) -> torch.Tensor | None:
        """Return which tokens of [batch, tokens, d] are real, 1 or 0 as [batch, tokens], or None where all count.

        What stands before the text, a prompt, is real. A mask of more tokens than there are is not of
        these: Whisper's is of audio frames, and says nothing of its tokens.
        """
        n_before = 0 if self._mask is None else hidden.shape[1] - self._mask.shape[1]
        return None if self._mask is None or n_before < 0 else functional.pad(self._mask, (n_before, 0), value=1)


def gate_maker(site: Site) -> Callable[[int, int], Gate]:
    """Return a function from (layer, width) to a new gate for that layer, and let such gates see the mask.

    The gate belongs to the module that it is part of, which the technique adds to the site.
    """
    mask = TokenMask()
    first = site.summary.layers[0]
    # of a model of two stacks the encoder, which generation calls by itself
    reader = site.module(stack_path(first)) if first.stack else site.model.base_model
    site.pre_hook(reader, mask.read)
    return lambda layer, width: Gate(width, causal=is_causal(site.summary, layer), mask=mask)


def is_causal(summary: ModelSummary, layer: int) -> bool:
    """Return whether a layer's tokens see earlier ones only; in a model of two stacks, those of its decoder do."""
    stack = summary.layers[layer].stack
    return stack == "decoder" or (not stack and summary.is_decoder)
