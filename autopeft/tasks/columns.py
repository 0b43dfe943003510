"""Which column of a data set has which role: as given, or guessed where it is obvious."""

from collections.abc import Mapping, Sequence

from autopeft.errors import DataError
from autopeft.spec.messages import echo, listed, nearest, unknown_key

PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("text", "text_pair"),
)
"""Column names that mean two texts, as common data sets write them."""
GUESSES = {
    "text": ("text", "sentence", "review", "content", "document", "comment", "tweet", "snippet", "body", "utterance"),
    "label": ("label", "labels", "target", "class", "category", "sentiment"),
    "prompt": ("prompt", "instruction", "question", "query", "input"),
    "completion": ("completion", "response", "answer", "output"),
    "messages": ("messages", "conversation", "conversations", "chat"),
}
"""Column names that mean a role where nothing is said; compared without case and spaces around."""
TEXT_ROLES = ("text", "text_pair", "prompt", "completion")
"""Roles whose columns hold texts."""


def find_columns(
    available: Sequence[str], given: Mapping[str, str] | None, *, required: Sequence[str], optional: Sequence[str]
) -> dict[str, str]:
    """Return the column of each role: as given, or guessed where it is obvious.

    Raises:
        DataError: A role or column is unknown, two roles share a column, or a required role stays open.
    """
    roles = [*required, *optional]
    columns = dict(given or {})
    for role, column in columns.items():
        if role not in roles:
            raise DataError(unknown_key(f"columns.{role}", roles))
        if column not in available:
            raise DataError(
                f"columns.{role} must be a column of the data, but got {echo(column)}"
                f"{nearest(str(column), available)}; the data has {listed(available)}"
            )
        if list(columns.values()).count(column) > 1:
            raise DataError(f"each role must have its own column, but {echo(column)} is used twice in columns")
    if "text" not in columns and "text_pair" not in columns and "text_pair" in roles:
        columns |= _guess_pair(available, columns)
    for role in required:
        if role not in columns:
            free = [column for column in available if column not in columns.values()]
            matches = [column for column in free if column.strip().lower() in GUESSES.get(role, (role,))]
            if len(matches) != 1:
                why = f"{listed(matches)} could be it" if matches else "none has an obvious name"
                raise DataError(
                    f"columns.{role} must be given, because {why}; the data has {listed(available)}; "
                    f"set columns.{role} to one of them"
                )
            columns[role] = matches[0]
    return columns


def _guess_pair(available: Sequence[str], taken: Mapping[str, str]) -> dict[str, str]:
    free = {column.strip().lower(): column for column in available if column not in taken.values()}
    found = [pair for pair in PAIRS if pair[0] in free and pair[1] in free]
    return {"text": free[found[0][0]], "text_pair": free[found[0][1]]} if len(found) == 1 else {}
