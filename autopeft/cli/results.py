"""Commands that look at a study and take from it, also while it runs."""

import json
from typing import Any

import click

from autopeft.cli.base import explain_errors, pairs


@click.command()
@click.argument("folder", type=click.Path(file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
@explain_errors
def status(folder: str, as_json: bool) -> None:
    """Say whether the study in FOLDER (runs/<name>) is being searched, how far it is, and what was found."""
    from autopeft.api import open_study
    from autopeft.results.status import status_values, status_words

    result = open_study(folder)
    if as_json:
        click.echo(json.dumps(status_values(result.state), indent=2))
    else:
        click.echo(f"{status_words(result.state)}\n{result.summary()}")


@click.command()
@click.argument("folder", type=click.Path(file_okay=False))
@click.option("--csv", "as_csv", is_flag=True, help="Write every column as CSV.")
@click.option("--json", "as_json", is_flag=True, help="Write every column as JSON, one object for each trial.")
@explain_errors
def leaderboard(folder: str, as_csv: bool, as_json: bool) -> None:
    """Show every trial of the study in FOLDER, best first."""
    from rich.console import Console

    from autopeft.api import open_study
    from autopeft.results.terminal import leaderboard_table

    result = open_study(folder)
    if as_csv:
        click.echo(result.leaderboard().to_csv(index=False), nl=False)
    elif as_json:
        click.echo(result.leaderboard().to_json(orient="records", indent=2, double_precision=15, force_ascii=False))
    else:
        Console().print(leaderboard_table(result.state))


@click.command()
@click.argument("folder", type=click.Path(file_okay=False))
@click.option("--output", type=click.Path(dir_okay=False), help="Where to write; FOLDER/report.html by default.")
@explain_errors
def report(folder: str, output: str | None) -> None:
    """Write the report of the study in FOLDER as one HTML file that opens offline."""
    from autopeft.api import open_study

    result = open_study(folder)
    click.echo(result.report(output or result.paths()["report"]))


@click.command()
@click.argument("folder", type=click.Path(file_okay=False))
@click.argument("target", type=click.Path(file_okay=False))
@click.option("--trial", type=int, help="Which trial; the best one by default.")
@click.option("--within", type=click.Choice(["1se"]), help="Take the cheapest that is tied with the best.")
@click.option("--limit", "limits", multiple=True, metavar="COST=AMOUNT", help="Such as trainable_params=0.5%.")
@explain_errors
def export(folder: str, target: str, trial: int | None, within: Any, limits: tuple[str, ...]) -> None:
    """Copy a trained adapter of the study in FOLDER to TARGET, ready for autopeft.load."""
    from autopeft.api import open_study

    amounts = pairs(limits, "--limit", "COST=AMOUNT")
    result = open_study(folder)
    chosen = result.best(within=within, **amounts) if trial is None else trial
    path = result.export(chosen, target)
    click.echo(f"{path}: {result.trial(chosen).design.describe()}")


@click.command()
@click.argument("folder", type=click.Path(file_okay=False))
@click.option(
    "--stopped", is_flag=True, help="Also checkpoints of stopped trials: if promoted later, they start afresh."
)
@click.option("--adapters", is_flag=True, help="Also adapters that are neither on the front nor a baseline's.")
@click.option("--dry-run", is_flag=True, help="Say what would go; delete nothing.")
@explain_errors
def clean(folder: str, stopped: bool, adapters: bool, dry_run: bool) -> None:
    """Delete what the study in FOLDER does not need any more: checkpoints of trials that are done.

    The study can go on afterwards. Its record, predictions, logs and report stay; a study that is being searched
    is left alone.
    """
    from collections import Counter

    from autopeft.spec.units import format_bytes
    from autopeft.study.cleanup import clean as clean_study

    found = clean_study(folder, stopped=stopped, adapters=adapters, dry_run=dry_run)
    sizes: Counter[str] = Counter()
    for leftover in found:
        sizes[leftover.why] += leftover.n_bytes
        if dry_run:
            click.echo(f"{format_bytes(leftover.n_bytes):>10}  {leftover.path} ({leftover.why})")
    for why, n_bytes in sizes.items() if not dry_run else ():
        click.echo(f"{format_bytes(n_bytes):>10}  {sum(item.why == why for item in found)} x {why}")
    click.echo(f"{format_bytes(sizes.total()):>10}  {'would be freed' if dry_run else 'freed'}")


COMMANDS = (status, leaderboard, report, export, clean)
