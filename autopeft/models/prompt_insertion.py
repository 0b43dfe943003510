"""Putting tokens before a model's text, or into the layers of a vision model, and taking them off again."""

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from autopeft.errors import ModelError
from autopeft.models.roles import position_table

MakePrompt = Callable[[], torch.Tensor]
"""Returns the tokens to insert, [length, embedding size]."""


class TextInserter:
    """Puts a prompt into what a module is called with, and takes its positions off what comes out.

    With a cache, the prompt goes in at the first step; it is among the cached tokens from then on.
    """

    def __init__(
        self, prompt: MakePrompt, length: int, table: nn.Module, reader: nn.Module, n_positions: int | None
    ) -> None:
        self._prompt = prompt
        self._length = length
        self._table = table
        self._names = tuple(signature(reader.forward).parameters)
        positions = position_table(reader)
        self._n_positions = None if positions is None else n_positions  # computed positions go on beyond
        padding = getattr(positions, "padding_idx", None)
        self._first_position = 0 if padding is None else padding + 1  # RoBERTa's table starts after the padding's
        self._n_inserted = 0

    def before(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the call's arguments with the prompt before the text; mask, types and positions follow."""
        inputs = {**dict(zip(self._names, args, strict=False)), **kwargs}
        length = self._length
        cache = inputs.get("past_key_values")
        self._n_inserted = length if cache is None or cache.get_seq_length() == 0 else 0
        if self._n_inserted:
            embedded = inputs.get("inputs_embeds")
            if embedded is None:
                embedded = self._table(inputs["input_ids"])
            if self._n_positions is not None and embedded.shape[1] + length > self._n_positions:
                raise ModelError(
                    f"a prompt of {length} tokens and the input must fit into {self._n_positions} positions, but got "
                    f"an input of {embedded.shape[1]} tokens; truncate it to {self._n_positions - length}"
                )
            prompt = self._prompt().to(embedded.dtype).expand(len(embedded), -1, -1)
            inputs |= {"input_ids": None, "inputs_embeds": torch.cat([prompt, embedded], dim=1)}
            if inputs.get("token_type_ids") is not None:
                inputs["token_type_ids"] = functional.pad(inputs["token_type_ids"], (length, 0))
        mask = inputs.get("attention_mask")
        if mask is not None:
            if not isinstance(mask, torch.Tensor) or mask.dim() != 2:
                raise ModelError("a prompt needs an attention mask of [batch, tokens]; a static cache gives another")
            inputs["attention_mask"] = functional.pad(mask, (length, 0), value=1)  # over the cached tokens too
        if inputs.get("position_ids") is not None:
            inputs["position_ids"] = self._shift(inputs["position_ids"])
        return (), inputs

    def after(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        """Return the output without the prompt's positions: heads see the text's, in the input's length."""
        if self._n_inserted == 0:
            return output
        if isinstance(output, tuple):
            return (output[0][:, self._n_inserted :], *output[1:])
        output["last_hidden_state"] = output.last_hidden_state[:, self._n_inserted :]
        return output

    def _shift(self, positions: torch.Tensor) -> torch.Tensor:
        """Return the text's positions after the prompt's, which are the first ones."""
        shifted = positions + self._length
        if self._n_inserted == 0:
            return shifted
        own = torch.arange(self._first_position, self._first_position + self._length, device=positions.device)
        return torch.cat([own.expand(*positions.shape[:-1], -1), shifted], dim=-1)


class LayerInserter:
    """Puts tokens into what a layer reads, and takes them off what a layer writes.

    Positions were added before the layers and are not the inserted tokens', so that it makes no difference where
    among the others they stand.

    Args:
        prompt: The tokens.
        length: How many.
        at_end: Whether they stand after the patches, not after the class token: of two prompts that go through the
            same layer each must find its own again.
    """

    def __init__(self, prompt: MakePrompt, length: int, *, at_end: bool = False) -> None:
        self._prompt = prompt
        self._length = length
        self._at_end = at_end

    def before(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the layer's arguments with the tokens in its input, [batch, tokens, width]."""
        hidden = args[0] if args else kwargs["hidden_states"]
        prompt = self._prompt().to(hidden.dtype).expand(len(hidden), -1, -1)
        at = hidden.shape[1] if self._at_end else 1
        longer = torch.cat([hidden[:, :at], prompt, hidden[:, at:]], dim=1)
        return ((longer, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": longer})

    def after(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        """Return the layer's output without the tokens."""
        hidden = output[0] if isinstance(output, tuple) else output
        at = hidden.shape[1] - self._length if self._at_end else 1
        shorter = torch.cat([hidden[:, :at], hidden[:, at + self._length :]], dim=1)
        return (shorter, *output[1:]) if isinstance(output, tuple) else shorter
