"""Conversations as data sets write them, checked: a list of turns, each with its role and what is said."""

import json
from collections.abc import Mapping
from typing import Any

from autopeft.errors import DataError
from autopeft.spec.messages import one_of

Turn = dict[str, Any]
"""`role`, `content` and whatever else the data says of a turn, such as `tool_calls`; `weight` where it is 0."""
ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
"""Who can speak; what the assistant says is learned."""
SHAREGPT_KEYS = {"from": "role", "value": "content"}
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
"""How ShareGPT writes the two keys and the two speakers."""


def read_turns(value: Any, *, place: str, answered: bool = True) -> list[Turn]:
    """Return the turns of a conversation, with every field that says something.

    A field without a value is left out: tables write None where only other turns have the field. ShareGPT's `from` and
    `value` become role and content, one part of text becomes a text, and arguments of a tool call become an object,
    as chat templates take them.

    Args:
        value: A list of `{role, content}`, or that as JSON text, as csv files hold it.
        place: Column and row, for messages.
        answered: Whether the assistant must have said something, to learn from.

    Raises:
        DataError: It is no such list, a role is unknown, or there is no assistant's turn to learn.
    """
    value = read_json(value, place=place, what="a conversation")
    if not isinstance(value, list | tuple) or not value:
        raise DataError(f"{place} must hold a list of {{role, content}}, but got {_short(value)}")
    turns = [_turn(turn, f"turn {number} of {place}") for number, turn in enumerate(value, start=1)]
    roles = [turn["role"] for turn in turns]
    if answered and "assistant" not in roles:
        raise DataError(
            f"a conversation must have an assistant's turn, which is what is learned, but {place} has "
            f"{', '.join(roles)}; drop the row, or name the columns of a prompt and a completion"
        )
    if answered and not any(is_learned(turn) for turn in turns):
        raise DataError(
            f"an assistant's turn must be learned, but all in {place} have the weight 0; drop the row, or give one "
            "the weight 1"
        )
    if roles[0] == "assistant":
        raise DataError(
            f"a conversation must begin with what the assistant answers, but {place} begins with the assistant; drop "
            f"that turn"
        )
    return turns


def read_tools(value: Any, *, place: str) -> list[dict[str, Any]] | None:
    """Return the tools of a row as chat templates take them, or None where it has none.

    Args:
        value: A list of JSON schemas, that as JSON text, or nothing.
        place: Column and row, for messages.

    Raises:
        DataError: It is something else.
    """
    if value is None or (isinstance(value, float) and value != value) or (isinstance(value, str) and not value.strip()):
        return None
    value = read_json(value, place=place, what="a list of tools")
    if not isinstance(value, list | tuple) or not all(isinstance(tool, Mapping) for tool in value):
        raise DataError(f"{place} must hold a list of tools, each a JSON schema, but got {_short(value)}")
    return [dict(tool) for tool in value] or None


def is_learned(turn: Turn) -> bool:
    """Return whether what is said in a turn is a target."""
    return bool(turn["role"] == "assistant" and turn.get("weight", 1))


def read_json(value: Any, *, place: str, what: str) -> Any:
    """Return a value as JSON has it: parsed where it is text, plain lists where a table holds arrays.

    Raises:
        DataError: It is text that is no JSON.
    """
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place} must hold {what}, but it is text that is no JSON: {error}") from None
    return _plain(value)


def _plain(value: Any, *, of_table: bool = False) -> Any:
    """Return lists for arrays. In a table's arrays all objects have the same keys: one without a value is not there."""
    if hasattr(value, "tolist"):
        value, of_table = value.tolist(), True
    if isinstance(value, Mapping):
        return {k: _plain(v, of_table=of_table) for k, v in value.items() if v is not None or not of_table}
    if isinstance(value, list | tuple):
        return [_plain(item, of_table=of_table) for item in value]
    return value


def _turn(turn: Any, place: str) -> Turn:
    if isinstance(turn, Mapping) and set(SHAREGPT_KEYS) <= set(turn) and "role" not in turn and "content" not in turn:
        turn = {SHAREGPT_KEYS.get(key, key): value for key, value in turn.items()}
        turn["role"] = SHAREGPT_ROLES.get(str(turn["role"]), turn["role"])
    if not isinstance(turn, Mapping) or "role" not in turn:
        raise DataError(f"{place} must be {{role, content}}, but got {_short(turn)}")
    if turn["role"] not in ROLES:
        known = {**SHAREGPT_ROLES, "model": "assistant", "bot": "assistant"}.get(str(turn["role"]))
        way = f"; rename it to {known}" if known else "; rename it in the data"
        raise DataError(f"the role in {place} {one_of(ROLES, turn['role'])}{way}")
    says_nothing: tuple[Any, ...] = (None, "", [], {})
    kept = {k: v for k, v in turn.items() if k == "content" or (v not in says_nothing and v is not False)}
    if "tool_calls" in kept:
        kept["tool_calls"] = _tool_calls(kept["tool_calls"], place)
    _read_content(kept, place)
    _read_weight(kept, place)
    return kept


def _read_content(turn: Turn, place: str) -> None:
    """Check what is said; a turn may say nothing in words where it says something else, such as a tool call."""
    content, has_more = turn.pop("content", None), not turn.keys() <= {"role", "weight"}
    match content:
        case [{"type": "text", "text": str(text)}]:
            content = text
        case [*parts]:
            kinds = [part.get("type") if isinstance(part, Mapping) else part for part in parts]
            raise DataError(
                f"the content of {place} must be a text, but it has {len(parts)} parts: {_short(kinds)}; write it as "
                f"one text (autopeft trains on text alone)"
            )
        case None if has_more:
            return
    if not isinstance(content, str):
        raise DataError(f"the content of {place} must be a text, but got {_short(content)}; write it as one text")
    if turn["role"] == "assistant" and not content.strip() and not has_more:
        raise DataError(f"an assistant's turn must say something, but {place} is empty; drop the row or fill it in")
    turn["content"] = content


def _read_weight(turn: Turn, place: str) -> None:
    """Check OpenAI's mark of turns that are not learned, and leave out what says what holds anyway."""
    weight = turn.pop("weight", None)
    if weight is None:
        return
    if weight not in (0, 1) or (weight and turn["role"] != "assistant"):
        raise DataError(
            f"the weight of {place} must be 0 or 1, and 1 only where the assistant speaks, but got {_short(weight)} "
            f"for {turn['role']}; change it in the data"
        )
    if not weight and turn["role"] == "assistant":
        turn["weight"] = 0


def _tool_calls(calls: Any, place: str) -> Any:
    """Return tool calls whose arguments are objects: OpenAI writes JSON text there, which templates would quote."""
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise DataError(f"tool_calls of {place} must be a list of objects, but got {_short(calls)}")
    return [_tool_call(call, place) for call in calls]


def _tool_call(call: Mapping[str, Any], place: str) -> dict[str, Any]:
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _tool_call(call["function"], place)}
    if not isinstance(call.get("arguments"), str):
        return dict(call)
    arguments = read_json(call["arguments"], place=f"arguments of a tool call in {place}", what="an object")
    return {**call, "arguments": arguments}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
