"""Learning rates that have been measured: what a space means by `prior`, and each technique's default.

The table is search_spaces/learning_rates.yaml, which studies/benchmarks/learning_rates.py writes. A technique that
is not in it, as one from outside of autopeft, has its class's `default_learning_rate`.
"""

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
WIDENING = 3.0
"""A prior goes from the lowest best rate by this factor down, and from the highest by this factor up."""
UNMEASURED_HEAD_RATE = 1e-3


def prior(kind: str) -> Range:
    """Return the range around the best measured rates of a kind, or around its class's default."""
    best = _best_rates().get(kind) or {"": _unmeasured(kind)}
    return Range(low=_round(min(best.values()) / WIDENING), high=_round(max(best.values()) * WIDENING), log=True)


def default_learning_rate(kind: str) -> float:
    """Return the rate of a kind, or of `head`, where nothing gives one: the middle of what was best, on a log scale."""
    best = _best_rates().get(kind)
    if not best:
        return _unmeasured(kind)
    product = 1.0
    for rate in best.values():
        product *= rate ** (1 / len(best))
    return _round(product)


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
