"""Automated search for parameter-efficient fine-tuning configurations.

`autopeft.search(...)` trains hybrid adapters under memory and parameter budgets and returns their Pareto
front of efficiency versus quality.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autopeft.api import estimate as estimate
    from autopeft.api import load as load
    from autopeft.api import merge as merge
    from autopeft.api import open_study as open
    from autopeft.api import search as search
    from autopeft.outlook import DryRun as DryRun
    from autopeft.prediction import predict as predict
    from autopeft.results.result import SearchResult as SearchResult
    from autopeft.spec.block import Block as Block
    from autopeft.spec.block import register as register
    from autopeft.spec.cost import Budget as Budget
    from autopeft.spec.cost import Estimate as Estimate
    from autopeft.spec.design import Design as Design
    from autopeft.spec.event import Event as Event
    from autopeft.spec.model import Head as Head
    from autopeft.spec.space import SearchSpace as SearchSpace
    from autopeft.spec.study import EarlyStopping as EarlyStopping
    from autopeft.spec.study import StudySpec as StudySpec
    from autopeft.spec.training import Splits as Splits
    from autopeft.spec.training import Training as Training

__version__ = "0.1.0"

_HOMES = {
    "search": "api",
    "open": "api:open_study",
    "load": "api",
    "merge": "api",
    "estimate": "api",
    "predict": "prediction",
    "DryRun": "outlook",
    "SearchResult": "results.result",
    "Block": "spec.block",
    "register": "spec.block",
    "Budget": "spec.cost",
    "Estimate": "spec.cost",
    "Design": "spec.design",
    "Event": "spec.event",
    "Head": "spec.model",
    "SearchSpace": "spec.space",
    "EarlyStopping": "spec.study",
    "StudySpec": "spec.study",
    "Splits": "spec.training",
    "Training": "spec.training",
}
"""Where each public name lives; it is imported when it is first used."""

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'autopeft' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    value = getattr(import_module(f"autopeft.{module}"), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
