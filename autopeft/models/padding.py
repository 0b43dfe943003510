"""What fills a batch up to its longest row, and where: one rule for training, evaluation, predictions and exports."""

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Padding:
    """How batches are filled up.

    On the right, whatever the tokenizer says: there padding moves no token, where positions, windows and states count
    from the left. Writing alone needs the texts' ends at one edge.

    Attributes:
        pad_token_id: The token to fill with.
        padding_side: The side to fill on.
    """

    pad_token_id: int
    padding_side: Literal["left", "right"] = "right"

    @classmethod
    def of(cls, tokenizer: Any) -> "Padding | None":
        """Return the padding of a tokenizer's inputs, or None where no token is made for that."""
        token = pad_token_id(tokenizer)
        return None if token is None else cls(pad_token_id=token)


def pad_token_id(tokenizer: Any) -> int | None:
    """Return the token that fills batches: the tokenizer's padding token, else its end token."""
    token = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return None if token is None else int(token)
