"""Learning rates that have been measured: what a space means by `prior`, and each technique's default.

The table is search_spaces/learning_rates.yaml, which studies/benchmarks/learning_rates.py writes. A technique that
is not in it, as one from outside of autopeft, has its class's `default_learning_rate`.
"""

import math
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from autopeft.errors import SpaceError
from autopeft.spec.block import block_class
from autopeft.spec.choices import Range
from autopeft.spec.yaml_file import read_yaml

HEAD = "head"
"""What the new modules (classifier, pooler) are called among the kinds."""
TABLE = "learning_rates.yaml"
DOWN, UP = 10.0, 2.0
"""A prior goes from the lowest best rate by the first factor down, and from the highest by the second up: the table is
of short trainings, and longer ones want lower rates."""
UNMEASURED_HEAD_RATE = 1e-3


def prior(kind: str) -> Range:
    """Return the range around the best measured rates of a kind, or around its class's default."""
    best = _best_rates().get(kind)
    if best is None:  # a class names what is usual, and no result of a short training
        return Range(low=_round(_unmeasured(kind) / 3), high=_round(_unmeasured(kind) * 3), log=True)
    return Range(low=_round(min(best.values()) / DOWN), high=_round(max(best.values()) * UP), log=True)


def default_learning_rate(kind: str) -> float:
    """Return the rate of a kind, or of `head`, where nothing gives one: the middle of the prior, on a log scale."""
    if kind not in _best_rates():
        return _unmeasured(kind)
    measured = prior(kind)
    return _round(math.sqrt(float(measured.low) * float(measured.high)))


def _unmeasured(kind: str) -> float:
    return UNMEASURED_HEAD_RATE if kind == HEAD else block_class(kind).default_learning_rate


def _round(rate: float) -> float:
    """Keep two digits: a range says no more."""
    return float(f"{rate:.2g}")


@cache
def _best_rates() -> Mapping[str, Mapping[str, float]]:
    """Return the best rate by kind and model.

    Raises:
        SpaceError: The table is not what the benchmark writes.
    """
    text = (files("autopeft.search_spaces") / TABLE).read_text(encoding="utf-8")
    best = read_yaml(text, name=TABLE, error=SpaceError).plain().get("best")
    if not isinstance(best, Mapping) or not all(isinstance(rates, Mapping) and rates for rates in best.values()):
        raise SpaceError(
            f"{TABLE} must have the best learning rate by kind and model under `best`, but has {best!r}; "
            "write it with python studies/benchmarks/learning_rates.py"
        )
    return {kind: {model: float(rate) for model, rate in rates.items()} for kind, rates in best.items()}
