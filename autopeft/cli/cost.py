"""`autopeft estimate`: what designs cost, before anything is trained."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autopeft.cli.base import explain_errors, pairs
from autopeft.spec.messages import echo
from autopeft.spec.task import DEFAULT_TASK, load_task, task_names

if TYPE_CHECKING:
    from autopeft.costs.measured import Stopwatch
    from autopeft.costs.model_costs import ModelCosts
    from autopeft.costs.setting import Setting

WIDTH = 160
"""Characters of a table that goes into a file or a pipe."""
_KINDS_OF_QUESTION = "give --design for one design, --space for the designs of a space, or --fit for what fits a memory"


def _read_memory(_context: click.Context, _parameter: click.Parameter, text: str | None) -> int | None:
    from autopeft.spec.units import parse_bytes

    if text is None:
        return None
    try:
        n_bytes = parse_bytes(float(text) if text.isdigit() else text)
    except ValueError as error:
        raise click.BadParameter(f"{error}, but got {echo(text)}") from None
    if n_bytes < 1:
        raise click.BadParameter(f"must be above 0, but got {echo(text)}")
    return n_bytes


def _read_budget(_context: click.Context, _parameter: click.Parameter, texts: tuple[str, ...]) -> Any:
    from autopeft.errors import BudgetError
    from autopeft.spec.cost import Budget

    try:
        return Budget(pairs(texts, "--budget", "COST=AMOUNT"))
    except BudgetError as error:
        raise click.BadParameter(str(error)) from None


@dataclass(frozen=True, kw_only=True)
class _Question:
    """What was asked, once the model is known."""

    costs: "ModelCosts"
    setting: "Setting"
    measure: bool
    as_json: bool

    def stopwatch(self) -> "Stopwatch":
        """Return what times designs on the model."""
        from autopeft.costs.measured import Stopwatch

        return Stopwatch(self.costs, self.setting)

    def show(self, values: Mapping[str, Any], parts: Callable[[], Iterable[Any]]) -> None:
        """Write the answer for programs, or for people: lines as they are, tables as wide as the terminal."""
        if self.as_json:
            click.echo(json.dumps(values, indent=2))
            return
        from rich.console import Console

        console = Console(highlight=False)
        if not console.is_terminal:
            console.width = WIDTH
        for part in parts():
            console.print(part, markup=False, soft_wrap=isinstance(part, str))


@click.command()
@click.argument("model", type=click.Path())
@click.option("--design", help="A design as JSON, or a file that holds it.")
@click.option(
    "--space",
    "spaces",
    multiple=True,
    metavar="NAME-OR-YAML",
    help="Random designs of this space; with --fit, the spaces to ask about (may be repeated).",
)
@click.option("--samples", type=int, help="Designs that --space draws; 200 by default.")
@click.option("--seed", default=0, show_default=True, help="Of the draws.")
@click.option(
    "--budget",
    multiple=True,
    metavar="COST=AMOUNT",
    callback=_read_budget,
    help="What --space is held against, such as peak_memory=8GiB, trainable_params=2% or, relative to the default "
    "yardstick of studies, 'peak_memory=0.9x yardstick' (may be repeated). A peak is that of tensors; --fit takes what "
    "CUDA's allocator reserves, which is more.",
)
@click.option(
    "--fit",
    "memory_bytes",
    metavar="MEMORY",
    callback=_read_memory,
    help="Which batches and which storage of the base fit a memory such as 24GiB.",
)
@click.option("--task", default=DEFAULT_TASK, show_default=True, type=click.Choice(task_names()))
@click.option(
    "--head",
    metavar="CLASS",
    help="Class of transformers that the model is built as instead of the task's, such as "
    "AutoModelForImageClassification; images have the model's size, whatever --sequence-length says.",
)
@click.option("--batch-size", default=8, show_default=True, type=click.IntRange(min=1))
@click.option("--sequence-length", default=128, show_default=True, type=click.IntRange(min=1), help="In tokens.")
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(["float32", "bfloat16"]))
@click.option("--optimizer", default="adamw", show_default=True, type=click.Choice(["adamw", "adamw_8bit", "sgd"]))
@click.option("--checkpointing", is_flag=True, help="Layers compute their activations again instead of keeping them.")
@click.option("--device", default="cpu", show_default=True, type=click.Choice(["cpu", "cuda"]))
@click.option("--kernel", default="sdpa", show_default=True, type=click.Choice(["sdpa", "eager"]))
@click.option(
    "--measure",
    is_flag=True,
    help="Load the model onto --device, with random weights where it has none, and time training steps there, and what "
    "--design adds to inference; for --space, predict the time of steps from there.",
)
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@click.option("--trust-remote-code", is_flag=True, help="Run Python code that the model brings.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
@click.option("--plot", type=click.Path(dir_okay=False), help="Draw the memory of --design over a step, as PNG.")
@explain_errors
def estimate(
    model: str,
    design: str | None,
    spaces: tuple[str, ...],
    samples: int | None,
    seed: int,
    budget: Any,
    memory_bytes: int | None,
    plot: str | None,
    as_json: bool,
    measure: bool,
    head: str | None,
    revision: str | None,
    trust_remote_code: bool,
    **values: Any,
) -> None:
    """Say what designs on MODEL would cost, before anything is trained.

    MODEL is a hub id or a folder; a config.json is enough. Weights are loaded with --measure alone.
    """
    _check_options(design, spaces, samples, budget.limits, memory_bytes, plot)
    if measure and memory_bytes is not None:
        raise click.UsageError("--measure times --design, or predicts the time of --space; it does not go with --fit")
    from autopeft.costs.model_costs import ModelCosts
    from autopeft.costs.setting import Setting

    setting = Setting(**values)
    made = None if design is None else _read_design(design)
    if plot is not None:
        from autopeft.costs.plot import check_plot_path

        check_plot_path(plot)
    if measure:
        from autopeft.costs.measured import check_device

        check_device(setting)
    loaded = _load_spaces(spaces, shipped=memory_bytes is not None)
    costs = ModelCosts(
        model,
        task=setting.task,
        kernel=setting.kernel,
        head=None if head is None else _head(head),
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    question = _Question(costs=costs, setting=setting, measure=measure, as_json=as_json)
    if made is not None:
        _show_design(question, made, plot)
    elif memory_bytes is not None:
        _show_fit(question, memory_bytes, loaded, seed)
    else:
        _show_sample(question, loaded[0], 200 if samples is None else samples, seed, budget)


def _check_options(
    design: str | None,
    spaces: tuple[str, ...],
    samples: int | None,
    limits: Mapping[str, Any],
    memory_bytes: int | None,
    plot: str | None,
) -> None:
    """Raise `UsageError` where options contradict each other."""
    if design is not None and (spaces or memory_bytes is not None):
        raise click.UsageError(f"--design goes with neither --space nor --fit; {_KINDS_OF_QUESTION}")
    if design is None and not spaces and memory_bytes is None:
        raise click.UsageError(f"nothing is asked; {_KINDS_OF_QUESTION}")
    samples_are_drawn = bool(spaces) and memory_bytes is None
    if (samples is not None or limits) and not samples_are_drawn:
        raise click.UsageError("--samples and --budget are about the designs that --space draws; give --space alone")
    if samples_are_drawn and len(spaces) > 1:
        raise click.UsageError(f"--space must be given once without --fit, but got {', '.join(spaces)}")
    if samples is not None and samples < 1:
        raise click.UsageError(f"--samples >= 1 must hold, but got {samples}")
    if plot is not None and design is None:
        raise click.UsageError("--plot draws the memory of one design; give --design")


def _head(name: str) -> Any:
    """Return a head of this class; a classifier has two new classes."""
    from autopeft.spec.model import Head

    classes = load_task(DEFAULT_TASK).example_labels if name.endswith("Classification") else ()
    return Head(auto_class=name, labels=classes)


def _read_design(text: str) -> Any:
    from autopeft.errors import DesignError
    from autopeft.spec.design import Design

    if not text.lstrip().startswith(("{", "[")):
        try:
            text = Path(text).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = f"not UTF-8: {error}" if isinstance(error, ValueError) else error.strerror
            raise DesignError(
                f"--design must be a JSON object, or a file that holds one, but got {echo(text)} ({reason})"
            ) from None
    try:
        values = json.loads(text)
    except ValueError as error:
        raise DesignError(f"--design must be JSON, but {error}") from None
    return Design.from_dict(values)


def _load_spaces(names: tuple[str, ...], *, shipped: bool) -> list[Any]:
    """Return the spaces that were named, or those that ship where none was and they are wanted."""
    from autopeft.spec.space import SearchSpace
    from autopeft.spec.space_file import shipped_spaces

    return [SearchSpace.load(name) for name in names or (shipped_spaces() if shipped else ())]


def _show_design(question: _Question, design: Any, plot: str | None) -> None:
    answer = question.costs.estimate(design, question.setting)
    if question.measure:
        with _progress("measuring"):
            answer = question.stopwatch().measured(design, answer)
    resolved = design.resolve(question.costs.summary)
    head = f"{resolved.describe()}\n{question.setting.describe()}"
    question.show({"design": resolved.to_dict(), **answer.to_dict()}, lambda: (head, "", str(answer)))
    if plot is not None:
        from autopeft.costs.plot import draw_memory
        from autopeft.errors import StorageError

        explanation = question.costs.at(question.setting).explain(design)
        picture = draw_memory(explanation, head)
        try:
            picture.savefig(plot, dpi=120)
        except OSError as error:
            raise StorageError(f"{plot} cannot be written ({error.strerror}); name another place") from error
        click.echo(plot, err=question.as_json)


def _show_sample(question: _Question, space: Any, n_samples: int, seed: int, budget: Any) -> None:
    from autopeft.costs.sample import sample_costs
    from autopeft.costs.tables import sample_table
    from autopeft.spec.design import Design
    from autopeft.spec.yardstick import DEFAULT_YARDSTICK, fit_yardstick

    def yardstick() -> Any:
        return question.costs.estimate(
            fit_yardstick(DEFAULT_YARDSTICK, question.costs.summary) or Design(), question.setting
        )

    with _progress() as progress:
        limits = budget.resolve(question.costs.summary, yardstick)
        sample = sample_costs(
            question.costs,
            space,
            question.setting,
            n_samples=n_samples,
            seed=seed,
            limits=limits,
            progress=progress,
        )
    if question.measure:
        with _progress("measuring"):
            sample = question.stopwatch().predicted(sample)
    question.show(sample.to_dict(), lambda: sample_table(sample))


def _show_fit(question: _Question, memory_bytes: int, spaces: list[Any], seed: int) -> None:
    from autopeft.costs.fit import fit
    from autopeft.costs.tables import fit_table

    with _progress() as progress:
        found = fit(question.costs, memory_bytes, question.setting, spaces=spaces, seed=seed, progress=progress)
    question.show(found.to_dict(), lambda: fit_table(found, question.costs.summary.architecture))


@contextmanager
def _progress(first: str = "building the model") -> Iterator[Callable[[str, int, int], None]]:
    """Give a function that shows how far it is: one line in a terminal, nothing elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    with console.status(first) as status:
        yield lambda what, done, total: status.update(f"{done} of {total}: {what}")


COMMANDS = (estimate,)
