import json
from typing import Any

import numpy as np
import pytest

from autopeft.errors import DataError
from autopeft.tasks.conversations import read_turns

USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}


@pytest.mark.parametrize(
    "value",
    [
        [USER, ANSWER],
        (USER, ANSWER),
        np.array([USER, ANSWER], dtype=object),
        json.dumps([USER, ANSWER]),
        [{**USER, "name": None}, {**ANSWER, "tool_calls": None}],
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
        ([{"from": "human", "value": "hi"}], "rename from and value"),
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
