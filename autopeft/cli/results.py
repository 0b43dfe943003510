"""Commands that look at a study and take from it, also while it runs."""

from pathlib import Path
from typing import Any

import click

from autopeft.cli.base import explain_errors, pairs


@click.command()
@click.argument("folder", type=click.Path(file_okay=False))
@explain_errors
def status(folder: str) -> None:
    """Say how far the study in FOLDER (runs/<name>) is."""
    from autopeft.api import open_study

    click.echo(open_study(folder).summary())


@click.command()
@click.argument("folder", type=click.Path(file_okay=False))
@click.option("--csv", "as_csv", is_flag=True, help="Write every column as CSV.")
@explain_errors
def leaderboard(folder: str, as_csv: bool) -> None:
    """Show every trial of the study in FOLDER, best first."""
    from rich.console import Console

    from autopeft.api import open_study
    from autopeft.results.terminal import leaderboard_table

    result = open_study(folder)
    if as_csv:
        click.echo(result.leaderboard().to_csv(index=False), nl=False)
    else:
        Console().print(leaderboard_table(result.state))


@click.command()
@click.argument("folder", type=click.Path(file_okay=False))
@click.option("--output", type=click.Path(dir_okay=False), help="Where to write; FOLDER/report.html by default.")
@explain_errors
def report(folder: str, output: str | None) -> None:
    """Write the report of the study in FOLDER as one HTML file that opens offline."""
    from autopeft.api import open_study

    click.echo(open_study(folder).report(output or Path(folder) / "report.html"))


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


COMMANDS = (status, leaderboard, report, export)
