import json
from typing import Any

import numpy as np
import pytest

from autopeft.errors import DataError
from autopeft.tasks.conversations import read_tools, read_turns

USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}


@pytest.mark.parametrize(
    "value",
    [
        [USER, ANSWER],
        (USER, ANSWER),
        np.array([USER, ANSWER], dtype=object),
        json.dumps([USER, ANSWER]),
        [{**USER, "name": None}, {**ANSWER, "tool_calls": None}],
        [{**USER, "weight": 0}, {**ANSWER, "weight": 1, "tool_calls": []}],
        [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}],
        [{"role": "user", "content": [{"type": "text", "text": "hi"}]}, ANSWER],
    ],
)
def test_conversations_read_the_same_however_they_are_written(value: Any) -> None:
    assert read_turns(value, place="row 1") == [USER, ANSWER]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("hi there", "row 1 must hold a conversation, but it is text that is no JSON"),
        ([], r"must hold a list of \{role, content\}"),
        (5, "list of .*but got 5"),
        (["hi"], r"turn 1 of row 1 must be \{role, content\}, but got 'hi'"),
        ([{"from": "hooman", "value": "hi"}], "the role in turn 1 of row 1 must be one of"),
        ([{"role": ["user"], "content": "hi"}, ANSWER], "the role in turn 1 .*but got"),
        ([{"role": "human", "content": "hi"}, ANSWER], "the role in turn 1 .*rename it to user"),
        ([USER, {**ANSWER, "weight": 0.5}], "the weight of turn 2 of row 1 must be 0 or 1"),
        ([{**USER, "weight": 1}, ANSWER], "1 only where the assistant speaks"),
        ([USER, {**ANSWER, "weight": 0}], "all in row 1 have the weight 0"),
        ([USER, {**ANSWER, "tool_calls": "f()"}], "tool_calls of turn 2 of row 1 must be a list"),
        (
            [USER, {**ANSWER, "tool_calls": [{"function": {"name": "f", "arguments": "{oh"}}]}],
            "arguments of a tool call in turn 2 of row 1 must hold an object, but it is text that is no JSON",
        ),
        ([USER, {"role": "asistant", "content": "x"}], "the role in turn 2 of row 1 .*did you mean 'assistant'"),
        ([{"role": "user", "content": [{"type": "image"}]}, ANSWER], "content of turn 1 of row 1 must be a text"),
        ([USER, {"role": "assistant", "content": None}], "content of turn 2 of row 1 must be a text, but got None"),
        ([USER, {"role": "assistant", "content": " \n"}], "must say something, but turn 2 of row 1 is empty"),
        ([USER], "must have an assistant's turn.*row 1 has user; drop the row"),
        ([ANSWER, USER, ANSWER], "begins with the assistant; drop that turn"),
    ],
)
def test_a_bad_conversation_is_named(value: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_turns(value, place="row 1")


def test_a_field_that_only_other_rows_of_a_table_have_is_not_there() -> None:
    call = {"function": {"name": "f", "arguments": {"city": "Bern", "unit": None}}}
    of_table = np.array([{**USER, "tool_calls": None}, {**ANSWER, "tool_calls": np.array([call])}], dtype=object)
    (_, answer) = read_turns(of_table, place="row 1")
    assert answer["tool_calls"] == [{"function": {"name": "f", "arguments": {"city": "Bern"}}}]
    (_, answer) = read_turns([USER, {**ANSWER, "tool_calls": [call]}], place="row 1")
    assert answer["tool_calls"] == [call]


@pytest.mark.parametrize("value", [None, float("nan"), "", "[]", []])
def test_a_row_may_have_no_tools(value: Any) -> None:
    assert read_tools(value, place="row 1") is None


def test_tools_are_objects() -> None:
    assert read_tools('[{"name": "f"}]', place="row 1") == [{"name": "f"}]
    with pytest.raises(DataError, match=r"row 1 must hold a list of tools, .* but got \['f'\]"):
        read_tools(["f"], place="row 1")
