"""The command line: the same words as in Python.

Nothing heavy is imported before a command needs it: `--help` answers at once.
"""

import json
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import click

if TYPE_CHECKING:
    from autopeft.preparation import DryRun, PreparedStudy
    from autopeft.results.result import SearchResult

EXIT_CODES = """\b
Exit codes:
  0    the command did what was asked
  2    the request cannot be carried out: a file, a key, a value, a model, data
  3    no design of the space fits the budget
  4    the search ended, and no design trained in full
  5    trial after trial failed
  130  stopped by Ctrl-C or SIGTERM; the same command resumes
"""
OK, BAD_REQUEST, OVER_BUDGET, EMPTY_FRONT, FAILED, INTERRUPTED = 0, 2, 3, 4, 5, 130

P = ParamSpec("P")


def _explain_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Turn autopeft's own errors into one line and an exit code; anything else is a bug and keeps its traceback."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        from autopeft.errors import AutopeftError, BudgetError, SearchError

        try:
            command(*args, **kwargs)
        except AutopeftError as error:
            click.secho(f"error: {error}", fg="red", err=True)
            code = {BudgetError: OVER_BUDGET, SearchError: FAILED}.get(type(error), BAD_REQUEST)
            sys.exit(code)
        except KeyboardInterrupt:
            click.secho("interrupted", err=True)
            sys.exit(INTERRUPTED)

    return run


@click.group(epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="autopeft")
def main() -> None:
    """Search adapters for a pretrained transformer: the Pareto front of efficiency versus quality."""


@main.command()
@click.argument("study", type=click.Path(dir_okay=False))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key, such as n_trials=20.")
@click.option("--dry-run", is_flag=True, help="Check everything and say what a search would do; train nothing.")
@_explain_errors
def search(study: str, overrides: tuple[str, ...], dry_run: bool) -> None:
    """Run the search that the file STUDY describes; the same command again resumes it."""
    from rich.console import Console

    from autopeft.api import run_study
    from autopeft.preparation import DryRun
    from autopeft.progress import watch, write_log
    from autopeft.results.result import SearchResult
    from autopeft.spec.study import load_study

    spec = load_study(study, overrides)
    console = Console()
    if dry_run:
        answer = run_study(spec, dry=True)
        assert isinstance(answer, DryRun)
        _print_dry_run(answer)
        return
    console.print(f"checking {study}", highlight=False)
    with watch(console) as show, write_log(spec.folder / "search.log") as log:
        result = run_study(spec, callbacks=(show, log), on_ready=_print_ready)
    assert isinstance(result, SearchResult)
    _print_result(console, result)
    if result.interrupted:
        click.secho(f"stopped; resume with: autopeft search {study}", fg="yellow")
        sys.exit(INTERRUPTED)
    if not len(result.front):
        sys.exit(EMPTY_FRONT)


def _print_ready(study: "PreparedStudy") -> None:
    data, training = study.data, study.training
    click.echo(f"model   {study.spec.model}: {study.model.n_layers} layers, {study.model.n_parameters:,} parameters")
    click.echo(f"data    {len(data.train):,} train, {len(data.validation):,} validation, {len(data.test):,} test")
    for note in data.notes:
        click.echo(f"        {note}")
    click.echo(f"space   {study.space.name}: {study.space.size(study.model):,} designs, learning rates besides")
    click.echo(f"budget  {_limit_words(study.limits)}")
    click.echo(f"device  {training.device}, {training.precision}, {training.kernel} attention")


def _limit_words(limits: Mapping[str, int]) -> str:
    from autopeft.spec.cost import format_cost

    return ", ".join(f"{name} {format_cost(name, limit)}" for name, limit in limits.items()) or "none"


def _print_dry_run(answer: "DryRun") -> None:
    from autopeft.spec.units import format_seconds

    click.echo(f"space     {answer.size:,} designs, learning rates besides")
    click.echo(f"budget    {_limit_words(answer.limits)}")
    click.echo(f"feasible  {answer.feasible_share:.0%} of {answer.n_drawn} random designs")
    click.echo(f"time      about {format_seconds(answer.predicted_seconds)} on one worker")
    for note in answer.notes:
        click.echo(f"note      {note}")


def _print_result(console: Any, result: "SearchResult") -> None:
    from autopeft.results.terminal import front_table, leaderboard_table

    console.print(leaderboard_table(result.state))
    console.print(front_table(result.state))
    console.print(result.summary(), highlight=False)
    for name, path in result.paths().items():
        console.print(f"{name:9} {path}", highlight=False, soft_wrap=True)


@main.command()
@click.argument("folder", type=click.Path(file_okay=False))
@_explain_errors
def status(folder: str) -> None:
    """Say how far the study in FOLDER (runs/<name>) is."""
    from autopeft.api import open_study

    click.echo(open_study(folder).summary())


@main.command()
@click.argument("folder", type=click.Path(file_okay=False))
@click.option("--csv", "as_csv", is_flag=True, help="Write every column as CSV.")
@_explain_errors
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


@main.command()
@click.argument("folder", type=click.Path(file_okay=False))
@click.option("--output", type=click.Path(dir_okay=False), help="Where to write; FOLDER/report.html by default.")
@_explain_errors
def report(folder: str, output: str | None) -> None:
    """Write the report of the study in FOLDER as one HTML file that opens offline."""
    from autopeft.api import open_study

    click.echo(open_study(folder).report(output or Path(folder) / "report.html"))


@main.command()
@click.argument("folder", type=click.Path(file_okay=False))
@click.argument("target", type=click.Path(file_okay=False))
@click.option("--trial", type=int, help="Which trial; the best one by default.")
@click.option("--within", type=click.Choice(["1se"]), help="Take the cheapest that is tied with the best.")
@click.option("--limit", "limits", multiple=True, metavar="COST=AMOUNT", help="Such as trainable_params=0.5%.")
@_explain_errors
def export(folder: str, target: str, trial: int | None, within: Any, limits: tuple[str, ...]) -> None:
    """Copy a trained adapter of the study in FOLDER to TARGET, ready for autopeft.load."""
    from autopeft.api import open_study

    for limit in limits:
        if "=" not in limit:
            raise click.BadParameter(f"{limit!r} is not COST=AMOUNT", param_hint="--limit")
    result = open_study(folder)
    chosen = result.best(within=within, **dict(limit.split("=", 1) for limit in limits)) if trial is None else trial
    path = result.export(chosen, target)
    click.echo(f"{path}: {result.trial(chosen).design.describe()}")


@main.command()
@click.argument("model")
@click.option("--design", required=True, help="A design as JSON, or a file that holds it.")
@click.option("--batch-size", default=8, show_default=True, type=click.IntRange(min=1))
@click.option("--sequence-length", default=128, show_default=True, type=click.IntRange(min=1), help="In tokens.")
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(["float32", "bfloat16"]))
@click.option("--device", default="cpu", show_default=True, type=click.Choice(["cpu", "cuda"]))
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
@_explain_errors
def estimate(
    model: str, design: str, batch_size: int, sequence_length: int, dtype: Any, device: Any, as_json: bool
) -> None:
    """Say what a design on MODEL would cost to train, without weights and without training."""
    from autopeft.api import estimate as estimate_design
    from autopeft.spec.cost import format_cost
    from autopeft.spec.design import Design
    from autopeft.spec.objective import COSTS

    made = Design.from_dict(_read_json(design))
    answer = estimate_design(
        model, made, batch_size=batch_size, sequence_length=sequence_length, dtype=dtype, device=device
    )
    if as_json:
        click.echo(json.dumps(answer.to_dict(), indent=2))
        return
    click.echo(made.describe())
    for name in COSTS:
        click.echo(f"  {name:17} {format_cost(name, answer.cost(name)):>10}  ({answer.cost(name):,})")


def _read_json(text: str) -> Any:
    from autopeft.errors import DesignError

    path = Path(text)
    if not text.lstrip().startswith("{"):
        if not path.is_file():
            raise DesignError(f"--design must be JSON or a file that holds it, but got {text!r}")
        text = path.read_text(encoding="utf-8")
    try:
        return json.loads(text)
    except ValueError as error:
        raise DesignError(f"--design must be JSON, but {error}") from None


@main.command()
@_explain_errors
def doctor() -> None:
    """Check this machine: versions, device, and whether quantized training works on it."""
    from autopeft.doctor import examine

    healthy = True
    for finding in examine():
        healthy = healthy and finding.ok
        click.secho("ok      " if finding.ok else "problem ", fg="green" if finding.ok else "red", nl=False)
        click.echo(f"{finding.name}: {finding.detail}")
    if not healthy:
        sys.exit(BAD_REQUEST)
