"""`autopeft predict`: what a trained adapter says of new data."""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autopeft.cli.base import explain_errors, pairs

if TYPE_CHECKING:
    import pandas as pd

WRITERS: dict[str, Callable[["pd.DataFrame", Any], Any]] = {
    ".csv": lambda frame, file: frame.to_csv(file, index=False),
    ".tsv": lambda frame, file: frame.to_csv(file, index=False, sep="\t"),
    ".jsonl": lambda frame, file: frame.to_json(file, orient="records", lines=True, force_ascii=False),
    ".parquet": lambda frame, file: frame.to_parquet(file, index=False),
}
"""How each kind of file is written, by its extension."""


@click.command()
@click.argument("adapter", type=click.Path(file_okay=False))
@click.option(
    "--data",
    required=True,
    type=click.Path(),
    help="A file (csv, tsv, json, jsonl, parquet), a saved data set, or a hub id.",
)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help=f"Ends with {', '.join(WRITERS)}.")
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
        WRITERS[".csv"](frame, sys.stdout)
        return
    part = output.with_name(f".{output.name}.part")  # whoever sees the file sees all of it
    WRITERS[output.suffix.lower()](frame, part)
    part.replace(output)
    click.echo(f"{len(frame):,} rows in {output}", err=True)


def _check_output(output: Path) -> None:
    if output.suffix.lower() not in WRITERS:
        raise click.BadParameter(f"{str(output)!r} must end with {', '.join(WRITERS)}", param_hint="--output")
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
