"""Designs as a table of numbers, with the choices that its columns hold.

The choices are derived from the designs themselves: each field of each block kind, the layers, the learning rates,
and the quantization.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log10
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autopeft.spec.block import Block, block_class
from autopeft.spec.trial import TrialRecord

_ABSENT = -1e3
"""Stands for a parameter that a trial does not have: below every real value. How far below is nothing to a tree."""

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One choice: the columns of the table that hold it, and which rows have it.

    Attributes:
        block: The block kind that a switch `kind.use` switches; its columns are then all of the block's.
    """

    name: str
    columns: tuple[int, ...]
    present: NDArray[np.bool_]
    block: str = ""


def tabulate(
    trials: Sequence[TrialRecord], shares: Sequence[float], *, n_layers: int, learning_rates: bool
) -> tuple[Array, list[Parameter]]:
    """Return one row of numbers for each trial, and the choices that its columns hold.

    Args:
        trials: One for each row; a trial with several scores comes several times.
        shares: Of the full training, at which a row was scored: the first column, and no choice.
        n_layers: Of the model.
        learning_rates: Whether they are choices here.
    """
    columns: list[Array] = [np.array(shares)]
    parameters: list[Parameter] = []

    def add(name: str, values: Sequence[Sequence[float] | None]) -> None:
        """Add a choice of one or more columns, unless every trial that has it has the same."""
        present = np.array([value is not None for value in values])
        width = max((len(value) for value in values if value is not None), default=0)
        block = np.array([value if value is not None else [_ABSENT] * width for value in values])
        if width and len(np.unique(block[present], axis=0)) > 1:
            places = tuple(range(len(columns), len(columns) + width))
            columns.extend(block.T)
            parameters.append(Parameter(name=name, columns=places, present=present))

    add("quantization", _codes([trial.design.quantization for trial in trials]))
    if learning_rates:
        add("head.learning_rate", [_rate(trial, "head") for trial in trials])
    for kind in sorted({kind for trial in trials for kind in trial.design.kinds}):
        first = len(columns)
        present = np.array([kind in trial.design.kinds for trial in trials])
        if not present.all():
            columns.append(present.astype(np.float64))
        for name, values in _block_choices(kind, trials, n_layers):
            add(f"{kind}.{name}", values)
        if learning_rates:
            rates = [_rate(trial, kind) if kind in trial.design.kinds else None for trial in trials]
            add(f"{kind}.learning_rate", rates)
        if not present.all():
            places = tuple(range(first, len(columns)))
            parameters.append(Parameter(name=f"{kind}.use", columns=places, present=present, block=kind))
    return np.column_stack(columns), parameters


def _rate(trial: TrialRecord, kind: str) -> list[float] | None:
    rate = trial.learning_rates.get(kind)
    return None if not rate else [log10(rate)]


def _block_choices(
    kind: str, trials: Sequence[TrialRecord], n_layers: int
) -> Iterator[tuple[str, list[Sequence[float] | None]]]:
    """Yield each field of a block kind as numbers by trial, None where the trial has no such block.

    A field that says no more than the size does (alpha, where a space sets it to twice the rank) is left out.
    """
    blocks = [[block for block in trial.design.blocks if block.kind == kind] for trial in trials]
    fields, size_field = block_class(kind).model_fields, block_class(kind).size_field
    shared = {name: [_same([getattr(block, name) for block in own]) for own in blocks] for name in fields}
    for name, values in shared.items():
        repeats_size = size_field is not None and name != size_field and _one_to_one(shared[size_field], values)
        if name != "layers" and not repeats_size:
            yield name, _numbers(values)
    yield "layers", [_layer_switches(own, n_layers) if own else None for own in blocks]


def _layer_switches(blocks: Sequence[Block], n_layers: int) -> list[float]:
    """Return the number of layers that have a block, and for each layer whether it has: one choice, many columns."""
    used = set[int]()
    for block in blocks:
        used.update(range(n_layers) if block.layers == "all" else block.layers)
    return [float(len(used)), *(float(layer in used) for layer in range(n_layers))]


def _same(values: Sequence[Any]) -> Any:
    """Return what several blocks of one kind share: the value, the mean of numbers, or the tuple of what differs."""
    distinct = list(dict.fromkeys(values))
    if not distinct:
        return None
    if len(distinct) > 1:
        numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in distinct)
        return sum(values) / len(values) if numeric else tuple(distinct)
    return distinct[0]


def _one_to_one(a: Sequence[Any], b: Sequence[Any]) -> bool:
    pairs = {pair for pair in zip(a, b, strict=True) if pair[0] is not None}
    return len(pairs) == len({x for x, _ in pairs}) == len({y for _, y in pairs})


def _numbers(values: Sequence[Any]) -> list[Sequence[float] | None]:
    """Return numbers as they are and everything else as codes; trees need the order alone."""
    if all(value is None or isinstance(value, int | float) for value in values):
        return [None if value is None else [float(value)] for value in values]
    return _codes(values)


def _codes(values: Sequence[Any]) -> list[Sequence[float] | None]:
    """Return categories as one column for each."""
    known = sorted({value for value in values if value is not None}, key=str)
    return [None if value is None else [float(value == other) for other in known] for value in values]
