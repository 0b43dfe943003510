"""What all commands share: exit codes, and errors in one line."""

import errno
import shlex
import sys
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, ParamSpec

import click

from autopeft.spec.messages import echo

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

_PLACES = (errno.ENAMETOOLONG, errno.EACCES, errno.EROFS, errno.EISDIR, errno.ENOTDIR)
"""Errors of the system that are about the place that somebody named."""

P = ParamSpec("P")


def explain_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Turn autopeft's own errors into one line and an exit code; anything else is a bug and keeps its traceback."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        from autopeft.errors import AutopeftError, BudgetError, ExecutorError, SearchError, StorageError

        is_search = command.__name__ == "search"
        try:
            command(*args, **kwargs)
        except AutopeftError as error:
            click.secho(f"error: {error}", fg="red", err=True)
            code = {BudgetError: OVER_BUDGET, SearchError: FAILED, StorageError: NOT_WRITTEN}.get(
                type(error), BAD_REQUEST
            )
            if is_search and isinstance(error, ExecutorError | StorageError):
                click.secho(f"the same command is: {this_command()}", err=True)
            sys.exit(code)
        except OSError as error:
            if error.errno not in _PLACES or error.filename is None:
                raise
            click.secho(f"error: {echo(str(error.filename))}: {error.strerror}; give another place", fg="red", err=True)
            sys.exit(BAD_REQUEST)
        except KeyboardInterrupt:
            click.secho(f"interrupted{f'; resume with: {this_command()}' if is_search else ''}", err=True)
            sys.exit(INTERRUPTED)

    return run


_ARGUMENTS = "autopeft.arguments"


class CommandLine(click.Group):
    """The group of all commands; it remembers what was typed."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Keep the arguments, which parsing takes apart."""
        typed = tuple(args)
        context = super().make_context(info_name, args, parent, **extra)
        context.meta[_ARGUMENTS] = typed
        return context


def this_command() -> str:
    """Return the command that runs as one would type it in a shell, with every option that was given."""
    context = click.get_current_context(silent=True)
    return shlex.join(["autopeft", *(context.meta.get(_ARGUMENTS, ()) if context else ())])


def pairs(texts: Iterable[str], option: str, form: str) -> dict[str, str]:
    """Read what a repeated option such as `--columns text=review` says."""
    for text in texts:
        if "=" not in text:
            raise click.BadParameter(f"{echo(text)} is not {form}", param_hint=option)
    return dict(text.split("=", 1) for text in texts)
