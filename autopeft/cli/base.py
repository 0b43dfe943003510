"""What all commands share: exit codes, and errors in one line."""

import sys
from collections.abc import Callable, Iterable
from functools import wraps
from typing import ParamSpec

import click

EXIT_CODES = """\b
Exit codes:
  0    the command did what was asked
  1    replay: the record of a study differs from what the rules give
  2    the request cannot be carried out: a file, a key, a value, a model, data
  3    no design of the space fits the budget
  4    the search ended, and no design trained in full
  5    trial after trial failed
  6    what must be kept could not be written: a full disk, a storage out of reach; then the same command resumes
  130  stopped by Ctrl-C; the same command resumes
  143  stopped by SIGTERM, as schedulers send it; the same command resumes
"""
OK, DISAGREES, BAD_REQUEST, OVER_BUDGET, EMPTY_FRONT, FAILED, NOT_WRITTEN = 0, 1, 2, 3, 4, 5, 6
INTERRUPTED, TERMINATED = 130, 143

P = ParamSpec("P")


def explain_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Turn autopeft's own errors into one line and an exit code; anything else is a bug and keeps its traceback."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        from autopeft.errors import AutopeftError, BudgetError, SearchError, StorageError

        try:
            command(*args, **kwargs)
        except AutopeftError as error:
            click.secho(f"error: {error}", fg="red", err=True)
            code = {BudgetError: OVER_BUDGET, SearchError: FAILED, StorageError: NOT_WRITTEN}.get(
                type(error), BAD_REQUEST
            )
            sys.exit(code)
        except KeyboardInterrupt:
            click.secho("interrupted", err=True)
            sys.exit(INTERRUPTED)

    return run


def pairs(texts: Iterable[str], option: str, form: str) -> dict[str, str]:
    """Read what a repeated option such as `--columns text=review` says."""
    for text in texts:
        if "=" not in text:
            raise click.BadParameter(f"{text!r} is not {form}", param_hint=option)
    return dict(text.split("=", 1) for text in texts)
