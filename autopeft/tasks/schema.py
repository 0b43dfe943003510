"""Which of a task's forms a data set has: told by its columns."""

from collections.abc import Mapping, Sequence

from autopeft.errors import DataError
from autopeft.spec.messages import listed, unknown_key
from autopeft.tasks.columns import GUESSES

Form = tuple[str, ...]
"""Column roles that belong together, such as prompt and completion."""


def find_form(
    available: Sequence[str], given: Mapping[str, str] | None, *, forms: Sequence[Form], optional: Sequence[str]
) -> Form:
    """Return the form of the data: the one whose roles the study names, else the only one whose columns are there.

    Raises:
        DataError: A role is unknown, roles of several forms are named, or no form or several fit.
    """
    if len(forms) == 1:
        return forms[0]
    roles = [*dict.fromkeys(role for form in forms for role in form), *optional]
    for role in given or {}:
        if role not in roles:
            raise DataError(unknown_key(f"columns.{role}", roles))
    named = [role for role in given or {} if role not in optional]
    ways = "; or ".join(" and ".join(f"columns.{role}" for role in form) for form in forms)
    have = listed(available)
    if named:
        fitting = [form for form in forms if set(named) <= set(form)]
        if not fitting:
            raise DataError(f"data has one form, but columns names {', '.join(named)}; give {ways}, and no other")
        return fitting[0]
    taken = set((given or {}).values())
    free = {column.strip().lower() for column in available if column not in taken}
    found = [form for form in forms if all(free & set(GUESSES.get(role, (role,))) for role in form)]
    if len(found) != 1:
        both = " and as ".join(" + ".join(form) for form in found)
        why = f"it can be read as {both}" if found else "no column has an obvious name"
        raise DataError(f"data must have one form, but {why}; the data has {have}; give {ways}")
    return found[0]
