"""The token that fills a batch up to its longest row: one rule for training, evaluation, predictions and exports.

Batches are filled on the right, whatever the tokenizer says: there padding moves no token, where positions, windows and
states count from the left. Writing alone needs the texts' ends at one edge.
"""

from typing import Any


def pad_token_id(tokenizer: Any) -> int | None:
    """Return the token that fills batches: the tokenizer's padding token, else its end token; None without either."""
    token = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return None if token is None else int(token)
