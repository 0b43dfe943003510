"""Conversations as data sets write them, checked: a list of turns, each with its role and content."""

import json
from collections.abc import Mapping
from typing import Any

from autopeft.errors import DataError
from autopeft.spec.messages import one_of

Turn = dict[str, str]
ROLES = ("system", "user", "assistant")
"""Who can speak; what the assistant says is learned."""


def read_turns(value: Any, *, place: str, answered: bool = True) -> list[Turn]:
    """Return the turns of a conversation with role and content alone.

    Args:
        value: A list of `{role, content}`, or that as JSON text, as csv files hold it.
        place: Column and row, for messages.
        answered: Whether the assistant must have said something, to learn from.

    Raises:
        DataError: It is no such list, a role is unknown, or there is no assistant's turn to learn.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise DataError(f"{place} must hold a conversation, but it is text that is no JSON: {error}") from None
    value = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(value, list | tuple) or not value:
        raise DataError(f"{place} must hold a list of {{role, content}}, but got {_short(value)}")
    turns = [_turn(turn, f"turn {number} of {place}") for number, turn in enumerate(value, start=1)]
    roles = [turn["role"] for turn in turns]
    if answered and "assistant" not in roles:
        raise DataError(
            f"a conversation must have an assistant's turn, which is what is learned, but {place} has "
            f"{', '.join(roles)}; drop the row, or name the columns of a prompt and a completion"
        )
    if roles[0] == "assistant":
        raise DataError(
            f"a conversation must begin with what the assistant answers, but {place} begins with the assistant; drop "
            f"that turn"
        )
    return turns


def _turn(turn: Any, place: str) -> Turn:
    if not isinstance(turn, Mapping) or not {"role", "content"} <= set(turn):
        hint = "; rename from and value" if isinstance(turn, Mapping) and {"from", "value"} <= set(turn) else ""
        raise DataError(f"{place} must be {{role, content}}, but got {_short(turn)}{hint}")
    role, content = turn["role"], turn["content"]
    if role not in ROLES:
        raise DataError(f"the role in {place} {one_of(ROLES, role)}; rename it in the data")
    if not isinstance(content, str):
        raise DataError(f"the content of {place} must be a text, but got {_short(content)}; write it as one text")
    if role == "assistant" and not content.strip():
        raise DataError(f"an assistant's turn must say something, but {place} is empty; drop the row or fill it in")
    return {"role": role, "content": content}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
