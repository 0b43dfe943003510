"""`autopeft replay`: why a study did what it did, from its record alone."""

import json
import sys
from typing import TYPE_CHECKING

import click

from autopeft.cli.base import DISAGREES, explain_errors

if TYPE_CHECKING:
    from autopeft.searching.replay import Replay, TrialReplay


@click.command()
@click.argument("folder", type=click.Path(file_okay=False))
@click.option("--trial", type=int, help="Only this trial.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
@explain_errors
def replay(folder: str, trial: int | None, as_json: bool) -> None:
    """Derive every decision of the study in FOLDER (runs/<name>) again from its record.

    For each trial: whether it was within the budget, why it was started, what each rung compared it with, how it ended,
    and why it is on the front or not. Where the record holds another decision than the rules give, the exit code is 1
    and the trials are named.
    """
    from autopeft.errors import ResultError
    from autopeft.searching.replay import replay as derive
    from autopeft.study.state import read_state

    found = derive(read_state(folder))
    chosen = found.trials if trial is None else tuple(one for one in found.trials if one.number == trial)
    if trial is not None and not chosen:
        raise ResultError(f"a trial must be one of 0 to {len(found.trials) - 1}, but got {trial}")
    if as_json:
        values = found.to_dict()
        shown = values if trial is None else next(one for one in values["trials"] if one["number"] == trial)
        click.echo(json.dumps(shown, indent=2))
    else:
        for one in chosen:
            _print_trial(one)
        if trial is None:
            _print_study(found)
    if wrong := [one.number for one in chosen if not one.agrees]:
        named = ", ".join(map(str, wrong))
        click.secho(f"the record differs from the rules in trial {named}", fg="red", err=True)
        sys.exit(DISAGREES)


def _print_trial(trial: "TrialReplay") -> None:
    click.echo(f"trial {trial.number}  {trial.design}")
    for step in trial.steps:
        mark = {True: " ", False: "!", None: "?"}[step.agrees]
        click.secho(f"  {mark} {step.kind:7} {step.says}", fg="red" if step.agrees is False else None)


def _print_study(study: "Replay") -> None:
    if study.n_refused:
        reasons = ", ".join(f"{count} by {name}" for name, count in study.n_refused.items())
        click.echo(f"refused before training: {reasons}")
    numbers = ", ".join(map(str, study.front)) or "empty"
    value = "" if study.hypervolume is None else f"; hypervolume {study.hypervolume:.4f}"
    click.echo(f"front, cheapest first: {numbers}{value}")
    steps = [step for trial in study.trials for step in trial.steps]
    unknown = sum(step.agrees is None for step in steps)
    rest = f", {unknown} that the record does not hold enough to derive" if unknown else ""
    wrong = sum(step.agrees is False for step in steps)
    click.echo(f"{len(steps)} decisions: {len(steps) - unknown - wrong} as the rules give them, {wrong} not{rest}")


COMMANDS = (replay,)
