"""`autopeft estimate`: what a design costs, before anything is trained."""

import json
from pathlib import Path
from typing import Any

import click

from autopeft.cli.base import explain_errors
from autopeft.spec.task import DEFAULT_TASK, TASKS


@click.command()
@click.argument("model", type=click.Path())
@click.option("--design", required=True, type=click.Path(), help="A design as JSON, or a file that holds it.")
@click.option("--task", default=DEFAULT_TASK, show_default=True, type=click.Choice(list(TASKS)))
@click.option("--batch-size", default=8, show_default=True, type=click.IntRange(min=1))
@click.option("--sequence-length", default=128, show_default=True, type=click.IntRange(min=1), help="In tokens.")
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(["float32", "bfloat16"]))
@click.option("--device", default="cpu", show_default=True, type=click.Choice(["cpu", "cuda"]))
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
@explain_errors
def estimate(
    model: str, design: str, task: str, batch_size: int, sequence_length: int, dtype: Any, device: Any, as_json: bool
) -> None:
    """Say what a design on MODEL would cost to train, without weights and without training."""
    from autopeft.api import estimate as estimate_design
    from autopeft.spec.cost import format_cost
    from autopeft.spec.design import Design
    from autopeft.spec.objective import COSTS

    made = Design.from_dict(_read_json(design))
    answer = estimate_design(
        model, made, task=task, batch_size=batch_size, sequence_length=sequence_length, dtype=dtype, device=device
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


COMMANDS = (estimate,)
