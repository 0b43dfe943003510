"""Samples and fits for a terminal: lines of text, and tables."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from autopeft.costs.costing import MARGIN
from autopeft.costs.fast import VERSION as FAST
from autopeft.costs.fit import Fit, LargestBatch, SpaceFit
from autopeft.costs.sample import QUANTILES, CostSample
from autopeft.spec.cost import format_cost, format_limits
from autopeft.spec.objective import OBJECTIVES
from autopeft.spec.units import format_bytes, format_moment

N_REASONS = 5
"""Rules that illegal draws break most, of which a table speaks."""
NO_BATCH = "none fits"


class PlainTable:
    """Rows under names; without lines and colours where the output is no terminal. The last column may wrap."""

    def __init__(self, names: Sequence[str], rows: Iterable[Sequence[str]], *, left: Sequence[str]) -> None:
        """Keep the cells; columns named in `left` are words, all others are amounts."""
        self._names = names
        self._rows = [tuple(row) for row in rows]
        self._left = left

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render the table for this console."""
        plain = not console.is_terminal
        table = Table(
            box=None if plain else box.SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            padding=(0, 2 if plain else 1, 0, 0),
        )
        for name in self._names:
            wraps = name == self._names[-1]
            table.add_column(name, justify="left" if name in self._left else "right", no_wrap=not wraps)
        for row in self._rows:
            table.add_row(*(Text(cell) for cell in row))
        yield table


def sample_table(sample: CostSample) -> list[str | PlainTable]:
    """Return what a sample says: quantiles, what the budget leaves, illegal draws, and the extremes."""
    legal = f"{len(sample.costs)} of {sample.n_drawn} draws are legal designs"
    parts: list[str | PlainTable] = [f"{sample.space}: {legal}; {sample.setting.describe()}", ""]
    if sample.costs:
        rows = [
            (OBJECTIVES[name].label, *(format_cost(name, values[label]) for label in QUANTILES))
            for name, values in sample.quantiles.items()
        ]
        if seconds := sample.step_seconds:
            rows.append(("training step, predicted", *map(format_moment, seconds.values())))
        parts += [PlainTable(("", *QUANTILES), rows, left=("",)), ""]
    if n_fast := sample.n_estimated_by.get(FAST):
        n_dry_runs = len(sample.costs) - n_fast
        parts.append(
            f"estimates {n_fast} put together from their parts (memory and FLOPs within {MARGIN:.0%}), {n_dry_runs} by "
            "dry runs"
        )
    if sample.limits and sample.costs:
        over = ", ".join(f"{name} {count}" for name, count in sample.n_over.items())
        parts.append(f"budget    {format_limits(sample.limits)}")
        parts.append(f"feasible  {sample.feasible_share:.0%} of the legal draws; over it: {over}")
    for label, (design, estimate) in zip(("smallest", "largest"), sample.extremes(), strict=False):
        costs = ", ".join(format_cost(name, estimate.cost(name)) for name in ("trainable_params", "peak_memory"))
        parts.append(f"{label:9} {costs}: {design.describe()}")
    parts += [f"note      {note}" for note in sample.notes]
    for reason, count in list(sample.n_illegal.items())[:N_REASONS]:
        parts.append(f"illegal   {count} x {reason}")
    if (more := len(sample.n_illegal) - N_REASONS) > 0:
        parts.append(f"          and {more} reasons more")
    return parts


def fit_table(fit: Fit, architecture: str) -> list[str | PlainTable]:
    """Return what a fit says: the batches of known designs, then the spaces."""
    setting = fit.setting
    parts: list[str | PlainTable] = [
        f"{format_bytes(fit.memory_bytes)} for {architecture}: {setting.sequence_length} tokens, {setting.dtype}, "
        f"{setting.optimizer}{', checkpointing' if setting.checkpointing else ''}, {setting.device}",
        "",
        PlainTable(
            ("base", "largest batch", "memory there", "design"), map(_design_row, fit.designs), left=("base", "design")
        ),
    ]
    if fit.spaces:
        names = ("space", "base", f"fit at {setting.batch_size}", "largest batch: smallest", "typical design")
        parts += ["", PlainTable(names, map(_space_row, fit.spaces), left=("space", "base"))]
    for name, reason in fit.refused.items():
        parts.append(f"{name} is not for this model: {reason.partition(', but got')[0]}")
    parts += ["", _note(fit)]
    return parts


def _design_row(found: LargestBatch) -> tuple[str, ...]:
    words = found.design.describe().partition(f", {found.design.quantization} base")[0]
    at = "" if found.batch_size else " at 1"
    return (found.design.quantization, _batch(found), f"{format_bytes(found.memory_bytes)}{at}", words)


def _space_row(found: SpaceFit) -> tuple[str, ...]:
    share = f"{found.n_fitting / found.n_sampled:.0%} of {found.n_sampled}"
    return (found.space, found.quantization, share, _batch(found.smallest), _batch(found.typical))


def _batch(found: LargestBatch) -> str:
    return str(found.batch_size) if found.batch_size else NO_BATCH


def _note(fit: Fit) -> str:
    stored = "Base none is in fp32, of which bfloat16 computes a copy of each weight when it is needed."
    if fit.setting.device == "cuda":
        return (
            f"{stored} On a GPU the CUDA context, and whatever else runs there, take memory besides: leave them room. "
            "What CUDA's allocator reserves is predicted by its documented rules, and was not measured on a GPU."
        )
    return f"{stored} What the Python process takes besides its tensors comes on top."
