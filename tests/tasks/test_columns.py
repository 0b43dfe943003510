"""Which column has which role: as given, or guessed where it is obvious."""

from typing import Any

import pytest

from autopeft.errors import DataError
from autopeft.tasks.columns import find_columns

CLASSIFICATION = {"required": ("text", "label"), "optional": ("text_pair", "group")}


@pytest.mark.parametrize(
    ("available", "given", "expected"),
    [
        (["text", "label"], None, {"text": "text", "label": "label"}),
        (["id", "Sentence", "Sentiment"], None, {"text": "Sentence", "label": "Sentiment"}),
        (["premise", "hypothesis", "label"], None, {"text": "premise", "text_pair": "hypothesis", "label": "label"}),
        (["a", "b", "class"], {"text": "b"}, {"text": "b", "label": "class"}),
        (["id", " Text", "label "], None, {"text": " Text", "label": "label "}),
        (["text", "stars"], {"label": "stars"}, {"text": "text", "label": "stars"}),
    ],
)
def test_columns_are_guessed_where_obvious(available: list[str], given: Any, expected: dict[str, str]) -> None:
    assert find_columns(available, given, **CLASSIFICATION) == expected


@pytest.mark.parametrize(
    ("available", "given", "message"),
    [
        (["review", "stars"], None, "columns.label must be given.*review, stars"),
        (["text", "content", "label"], None, "text, content could be it"),
        (["text", "label"], {"text": "txt"}, "columns.text must be a column.*'txt'; did you mean 'text'"),
        (["text", "label"], {"txt": "text"}, "columns.txt is not a known key; did you mean 'text'"),
        (["text", "label"], {"text": "text", "label": "text"}, "'text' is used twice"),
    ],
)
def test_unclear_columns_are_refused(available: list[str], given: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        find_columns(available, given, **CLASSIFICATION)


def test_messages_name_some_of_many_columns() -> None:
    with pytest.raises(DataError) as caught:
        find_columns([f"column {number} {chr(120) * 500}" for number in range(5000)], None, **CLASSIFICATION)
    assert len(str(caught.value)) < 3000
