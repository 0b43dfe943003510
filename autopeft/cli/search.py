"""`autopeft search`: run a study, or say what running it would do."""

import json
import signal
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from autopeft.cli.base import EMPTY_FRONT, INTERRUPTED, TERMINATED, explain_errors, this_command
from autopeft.cli.dashboard import PORT, beside
from autopeft.spec.cost import format_limits
from autopeft.spec.location import is_uri
from autopeft.spec.storage_url import password_of

if TYPE_CHECKING:
    from autopeft.prepared import PreparedStudy
    from autopeft.results.result import SearchResult


def _complete_key(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return what a key of a study can go on with, once the shell asks."""
    from pydantic import BaseModel

    from autopeft.spec.objective import COSTS
    from autopeft.spec.study import EarlyStopping, RayOptions, StudySpec
    from autopeft.spec.training import Splits, Training

    nested: dict[str, type[BaseModel]] = {
        "training": Training,
        "splits": Splits,
        "early_stopping": EarlyStopping,
        "executor": RayOptions,
    }
    keys = [*StudySpec.model_fields, *(f"budget.{cost}" for cost in COSTS)]
    keys += [f"{parent}.{name}" for parent, model in nested.items() for name in model.model_fields]
    return [f"{key}=" for key in sorted(keys) if key.startswith(incomplete)]


@click.command()
@click.argument("study", type=click.Path(dir_okay=False))
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key, such as n_trials=20.",
    shell_complete=_complete_key,
)
@click.option("--executor", type=click.Choice(["local", "ray"]), help="Where designs train; the study's by default.")
@click.option("--address", metavar="ADDRESS", help="Of a running Ray: auto, or host:port; implies --executor ray.")
@click.option("--workers", type=click.IntRange(min=1), help="Designs that train at the same time, on Ray.")
@click.option("--dry-run", is_flag=True, help="Check everything and say what a search would do; train nothing.")
@click.option("--dashboard", is_flag=True, help="Show the study in the browser for as long as the search runs.")
@click.option("--dashboard-port", type=PORT, help="Where; 8080, or the next free one, by default.")
@explain_errors
def search(
    study: str,
    overrides: tuple[str, ...],
    executor: str | None,
    address: str | None,
    workers: int | None,
    dry_run: bool,
    dashboard: bool,
    dashboard_port: int | None,
) -> None:
    """Run the search that the file STUDY describes; the same command again resumes it."""
    from rich.console import Console

    from autopeft.api import run_study
    from autopeft.results.result import SearchResult
    from autopeft.spec.study import load_study
    from autopeft.study.folder import StudyFolder

    spec = load_study(study, (*overrides, *_where(executor, address, workers)))
    console = Console()
    if dry_run:
        click.echo(run_study(spec, dry=True))
        return
    with ExitStack() as stack:
        if dashboard or dashboard_port is not None:
            folder = StudyFolder.at(spec.location, spec.work_dir).path
            password = None if spec.storage is None else password_of(spec.storage)
            address = stack.enter_context(beside(folder, dashboard_port, password=password))
            console.print(f"dashboard {address}  (in some seconds, for as long as the search runs)", highlight=False)
        console.print(f"checking {study}", highlight=False)
        result = run_study(spec, progress=True, on_ready=_print_ready)
    assert isinstance(result, SearchResult)
    _print_result(console, result)
    if result.interrupted:
        click.secho(f"stopped; resume with: {this_command()}", fg="yellow")
        sys.exit(TERMINATED if result.stopped_by is signal.SIGTERM else INTERRUPTED)
    if not len(result.front):
        sys.exit(EMPTY_FRONT)


def _where(executor: str | None, address: str | None, workers: int | None) -> list[str]:
    """Return the overrides that say where designs train; what the study says of Ray besides is kept."""
    if executor == "local":
        if address is not None or workers is not None:
            raise click.UsageError("--address and --workers are for Ray, but got --executor local; leave it out")
        return ["executor=local", "n_workers=1"]
    found = [] if executor is None else ["executor.type=ray"]
    if address is not None:
        found.append(f"executor.address={json.dumps(address)}")
    if workers is not None:
        found += [f"executor.workers={workers}", f"n_workers={workers}"]
    return found


def _print_ready(study: "PreparedStudy") -> None:
    data, training = study.data, study.training
    click.echo(f"model   {study.spec.model}: {study.model.n_layers} layers, {study.model.n_parameters:,} parameters")
    click.echo(f"data    {len(data.train):,} train, {len(data.validation):,} validation, {len(data.test):,} test")
    for note in data.notes:
        click.echo(f"        {note}")
    click.echo(f"space   {study.space.name}: {study.space.size(study.model):,} designs, learning rates besides")
    for note in study.space_notes:
        click.echo(f"        {note}")
    click.echo(f"budget  {format_limits(study.limits, study.spec.budget)}")
    click.echo(f"device  {training.device}, {training.precision}, {training.kernel} attention")


def _print_result(console: Any, result: "SearchResult") -> None:
    from autopeft.results.terminal import front_table, leaderboard_table

    console.print(leaderboard_table(result.state))
    console.print(front_table(result.state))
    console.print(result.summary(), highlight=False)
    if is_uri(location := result.state.spec.location):
        console.print(f"{'study':9} {location}", highlight=False, soft_wrap=True)
    for name, path in result.paths().items():
        console.print(f"{name:9} {path}", highlight=False, soft_wrap=True)


COMMANDS = (search,)
