"""Where the tokens of a text stand, and moving them to make room before them."""

from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from autopeft.models.roles import position_table

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def backbone(model: "PreTrainedModel") -> nn.Module:
    """Return the module that every forward goes through: OPT's heads call the decoder inside of the base model."""
    inner: Any = model.base_model
    reader: nn.Module = inner.get_decoder()
    if reader is not model:
        return reader
    # Llama 4 names its backbone otherwise than it says: the head must not be part of it
    takes = (child for child in model.children() if "inputs_embeds" in signature(child.forward).parameters)
    return next(takes, reader)


def shift_positions(length: int, reader: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Move the positions of the tokens that the backbone reads by the length of the prefix, as peft does.

    Omits: where a position would lie beyond a learned table, the table's last one is taken; peft
    fails there.
    """
    names = signature(reader.forward).parameters
    inputs = {**dict(zip(names, args, strict=False)), **kwargs}
    tokens = inputs.get("input_ids")
    positions = inputs.get("position_ids")
    table = position_table(reader)
    padding = None if table is None else getattr(table, "padding_idx", None)
    mask = inputs.get("attention_mask")
    cache = inputs.get("past_key_values")
    n_past = 0 if cache is None else cache.get_seq_length()
    if positions is not None:
        positions = positions + length
    elif hasattr(table, "offset") and mask is not None and mask.dim() == 2:
        positions = ((mask.cumsum(1) + length) * mask - 1)[:, n_past:]  # OPT counts the tokens that are not masked
    else:
        start = length + n_past
        shape = inputs["inputs_embeds"].shape[:2] if tokens is None else tokens.shape
        device = inputs["inputs_embeds"].device if tokens is None else tokens.device
        positions = torch.arange(start, start + shape[1], device=device)[None]
        if padding is not None:
            # RoBERTa counts real tokens from padding + 1; where padding itself stands does not matter.
            real = torch.ones(shape, device=device, dtype=torch.long) if tokens is None else tokens.ne(padding).long()
            positions = real.cumsum(1) + start + padding
    if table is not None:
        last = table.num_embeddings - 1 - getattr(table, "offset", 0)  # OPT's table starts later
        positions = positions.clamp(max=last)
    return (), {**inputs, "position_ids": positions}
