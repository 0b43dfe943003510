"""`autopeft predict`: what a trained adapter says of new data."""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from autopeft.cli.base import explain_errors, pairs
from autopeft.cli.table_files import EXTENSIONS, write_delimited, write_table
from autopeft.spec.location import MAX_NAME_BYTES
from autopeft.spec.messages import echo


@click.command()
@click.argument("adapter", type=click.Path(file_okay=False))
@click.option(
    "--data",
    required=True,
    type=click.Path(),
    help="A file (csv, tsv, json, jsonl, parquet), a folder of such files, a saved data set, or a hub id.",
)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help=f"Ends with {', '.join(EXTENSIONS)}.")
@click.option("--columns", multiple=True, metavar="ROLE=COLUMN", help="Such as text=review.")
@click.option("--split", help="Which split, where the data has several.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first rows.")
@click.option("--probabilities", is_flag=True, help="Add the probability of every class.")
@click.option(
    "--max-new-tokens", default=64, show_default=True, type=click.IntRange(min=1), help="Of a language model."
)
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(min=1))
@click.option("--base-model", type=click.Path(), help="Where the base model is now, if not where it was.")
@click.option("--device", help="Such as cpu or cuda; a GPU where there is one by default.")
@explain_errors
def predict(adapter: str, data: str, output: Path | None, columns: tuple[str, ...], **options: Any) -> None:
    """Predict with the exported ADAPTER; without --output, write CSV to standard output.

    Rows keep their order and their columns; labels are not needed.
    """
    if output is not None:
        _check_output(output)
    roles = pairs(columns, "--columns", "ROLE=COLUMN")
    with _notes(), _progress() as on_progress:
        from autopeft.prediction import predict as predict_rows

        frame = predict_rows(adapter, data, columns=roles, on_progress=on_progress, **options)
    if output is None:
        write_delimited(frame, sys.stdout, separator=",")
        return
    written, reason = write_table(frame, output)
    if reason:
        click.echo(f"note: {output.suffix[1:]} cannot hold these rows ({reason}); they are written as jsonl", err=True)
    click.echo(f"{len(frame):,} rows in {written}", err=True)


def _check_output(output: Path) -> None:
    if (n_bytes := len(output.name.encode(errors="replace"))) > MAX_NAME_BYTES:
        raise click.BadParameter(
            f"a file's name has at most {MAX_NAME_BYTES} bytes, but {echo(output.name)} has {n_bytes}",
            param_hint="--output",
        )
    if output.suffix.lower() not in EXTENSIONS:
        raise click.BadParameter(f"{echo(str(output))} must end with {', '.join(EXTENSIONS)}", param_hint="--output")
    if not output.parent.is_dir():
        raise click.BadParameter(f"the folder {str(output.parent)!r} is not there; make it", param_hint="--output")


@contextmanager
def _notes() -> Iterator[None]:
    """Show warnings as one line each, on standard error."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: click.echo(f"note: {message}", err=True)
        yield


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """Yield a callback that shows progress on standard error where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("loading", total=None)
        yield lambda done, total: progress.update(task, description="rows", completed=done, total=total)


COMMANDS = (predict,)
