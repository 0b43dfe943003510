from typing import Any

import pytest

from autopeft.errors import DataError
from autopeft.tasks.causal_lm import TASK
from autopeft.tasks.schema import find_form

LANGUAGE = {"forms": TASK.forms, "optional": TASK.optional}


@pytest.mark.parametrize(
    ("available", "given", "expected"),
    [
        (["id", "Text"], None, ("text",)),
        (["instruction", "output"], None, ("prompt", "completion")),
        (["Question", "Answer", "source"], {"group": "source"}, ("prompt", "completion")),
        (["prompt", "prompt_id", "messages"], None, ("messages",)),
        (["text", "prompt", "completion"], {"text": "text"}, ("text",)),
        (["text", "prompt", "completion"], {"completion": "completion"}, ("prompt", "completion")),
        (["a", "b"], {"prompt": "a", "completion": "b"}, ("prompt", "completion")),
        (["text", "messages"], {"group": "text"}, ("messages",)),
    ],
)
def test_the_form_is_told_by_the_columns(available: list[str], given: Any, expected: tuple[str, ...]) -> None:
    assert find_form(available, given, **LANGUAGE) == expected


@pytest.mark.parametrize(
    ("available", "given", "message"),
    [
        (["text", "prompt", "completion"], None, r"it can be read as text and as prompt \+ completion; .*give columns"),
        (
            ["a", "b"],
            None,
            "no column has an obvious name; the data has a, b; give columns.text; or columns.prompt and",
        ),
        (["text", "prompt"], {"text": "text", "prompt": "prompt"}, "one form, but columns names text, prompt; give"),
        (["text"], {"txt": "text"}, "columns.txt is not a known key; did you mean 'text'"),
        (["text", "label"], {"label": "label"}, "columns.label is not a known key"),
    ],
)
def test_an_unclear_form_is_refused_with_the_ways_out(available: list[str], given: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        find_form(available, given, **LANGUAGE)


def test_a_task_of_one_form_has_it_whatever_the_columns_are() -> None:
    assert find_form(["a"], None, forms=(("text", "label"),), optional=()) == ("text", "label")
