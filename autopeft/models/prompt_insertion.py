"""Putting tokens before a model's text, or into the layers of a vision model, and taking them off again."""

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import nn

from autopeft.errors import DesignError, ModelError
from autopeft.models.roles import position_table

MakePrompt = Callable[[], torch.Tensor]
"""Returns the tokens to insert, [length, embedding size]."""


class TextInserter:
    """Puts a prompt into what a module is called with, and takes its positions off what comes out.

    The prompt stands right before the text: where a row is padded on the left, after the padding, so that windows,
    distances and positions are the same in every batch. With a cache, the prompt goes in at the first step; it is
    among the cached tokens from then on.
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
        self._inserts = False
        self._starts: torch.Tensor | None = None

    def before(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the call's arguments with the prompt before the text; mask, types and positions follow."""
        inputs = {**dict(zip(self._names, args, strict=False)), **kwargs}
        length = self._length
        cache, mask = inputs.get("past_key_values"), inputs.get("attention_mask")
        self._inserts = cache is None or cache.get_seq_length() == 0
        if mask is not None and (not isinstance(mask, torch.Tensor) or mask.dim() != 2):
            raise DesignError(
                "a prompt needs an attention mask of [batch, tokens], but static caches and models of images and text "
                "give another; take prompt out of the space"
            )
        self._starts = _text_starts(mask)
        if self._inserts:
            embedded = inputs.get("inputs_embeds")
            if embedded is None:
                embedded = self._table(inputs["input_ids"])
            if self._n_positions is not None and embedded.shape[1] + length > self._n_positions:
                raise ModelError(
                    f"a prompt of {length} tokens and the input must fit into {self._n_positions} positions, but got "
                    f"an input of {embedded.shape[1]} tokens; truncate it to {self._n_positions - length}"
                )
            prompt = self._prompt().to(embedded.dtype).expand(len(embedded), -1, -1)
            inputs |= {"input_ids": None, "inputs_embeds": _insert(prompt, embedded, self._starts)}
            types = inputs.get("token_type_ids")
            if types is not None:
                inputs["token_type_ids"] = _insert(types.new_zeros(len(types), length), types, self._starts)
        if mask is not None:  # over the cached tokens too
            inputs["attention_mask"] = _insert(mask.new_ones(len(mask), length), mask, self._starts)
        if inputs.get("position_ids") is not None:
            inputs["position_ids"] = self._shift(inputs["position_ids"])
        return (), inputs

    def after(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        """Return the output without the prompt's positions: heads see the text's, in the input's length."""
        if not self._inserts:
            return output
        if isinstance(output, tuple):
            return (_remove(output[0], self._length, self._starts), *output[1:])
        output["last_hidden_state"] = _remove(output.last_hidden_state, self._length, self._starts)
        return output

    def _shift(self, positions: torch.Tensor) -> torch.Tensor:
        """Return the text's positions after the prompt's, which are the first ones."""
        shifted = positions + self._length
        if not self._inserts:
            return shifted
        own = torch.arange(self._first_position, self._first_position + self._length, device=positions.device)
        if self._starts is None:
            return torch.cat([own.expand(*positions.shape[:-1], -1), shifted], dim=-1)
        shifted = torch.where(torch.arange(positions.shape[-1], device=own.device) < self._starts, positions, shifted)
        return _insert(own.expand(len(shifted), -1), shifted, self._starts)


def _text_starts(mask: torch.Tensor | None) -> torch.Tensor | None:
    """Return where each row's text starts, [batch, 1], or None where all start at the front."""
    if mask is None or not bool((mask[:, 0] == 0).any()):
        return None
    return mask.ne(0).int().argmax(dim=1, keepdim=True)


def _insert(new: torch.Tensor, values: torch.Tensor, starts: torch.Tensor | None) -> torch.Tensor:
    """Return [batch, tokens, ...] with new tokens before each row's start, or before all."""
    joined = torch.cat([new, values], dim=1)
    if starts is None:
        return joined
    length, at = new.shape[1], torch.arange(joined.shape[1], device=joined.device)
    order = torch.where(at < starts, at + length, torch.where(at < starts + length, at - starts, at))
    return _take(joined, order)


def _remove(values: torch.Tensor, length: int, starts: torch.Tensor | None) -> torch.Tensor:
    """Return [batch, tokens, ...] without the tokens that `_insert` put in."""
    if starts is None:
        return values[:, length:]
    at = torch.arange(values.shape[1] - length, device=values.device)
    return _take(values, torch.where(at < starts, at, at + length))


def _take(values: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Return the tokens of each row of [batch, tokens, ...] in an order of its own, [batch, tokens]."""
    return values.take_along_dim(order.reshape(*order.shape, *[1] * (values.dim() - 2)), dim=1)


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
