"""The budget of a study as amounts, settled once, and whether the space has anything within it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from autopeft.costs.estimator import Estimator
from autopeft.errors import BudgetError, DesignError
from autopeft.spec.cost import Budget, excess, format_cost
from autopeft.spec.design import Design
from autopeft.spec.model import ModelSummary
from autopeft.spec.study import StudySpec
from autopeft.spec.yardstick import fit_yardstick


def settle_limits(
    spec: StudySpec, model: ModelSummary, estimator: Estimator, known: Mapping[str, Any] | None
) -> dict[str, int]:
    """Return the limits of a study's budget as amounts.

    A limit that is relative to the yardstick is worked out at the precision and with the kernel of the study. A resumed
    study keeps the amounts that it began with, also where a newer estimator would say something else.

    Args:
        spec: The study.
        model: Its unquantized base model.
        estimator: Says what the yardstick costs.
        known: The resolved study file of an earlier run; None where there is none.

    Raises:
        BudgetError: The yardstick costs nothing of what a limit is a multiple of.
        DesignError: The yardstick cannot be trained on the study's data.
    """
    budget, design = Budget(spec.budget), fit_yardstick(spec.yardstick, model)
    if known is not None and known["spec"].get("yardstick") == spec.yardstick:
        began = Budget(known["spec"]["budget"]).relative
        kept = {name: known["limits"][name] for name, text in budget.relative.items() if began.get(name) == text}
        budget = Budget({**budget.limits, **kept})

    return budget.resolve(model, None if design is None else lambda: estimator(design))


def check_some_design_fits(designs: Sequence[Design], limits: Mapping[str, int], estimator: Estimator) -> None:
    """Make sure that not every design of a space is over the budget.

    Args:
        designs: Those that can be the cheapest of the space, fewest parameters first.
        limits: The budget as amounts.
        estimator: Says what a design costs.

    Raises:
        BudgetError: Not even the smallest of them fits.
    """
    if not limits:
        return
    best: tuple[float, str] | None = None
    for design in designs:
        if estimator.trainable_params(design) > limits.get("trainable_params", math.inf) and best:
            break
        try:
            estimate = estimator(design)
        except DesignError:  # it breaks on the model: the search refuses it, and says why
            continue
        over = excess(limits, estimate)
        name = max(over, key=lambda limit: over[limit])
        if over[name] <= 0:
            return
        message = (
            f"some design of the space must fit the budget, but the smallest one, {design.describe()}, has "
            f"{name} {format_cost(name, estimate.cost(name))} ({estimate.cost(name):,}), and the limit is "
            f"{format_cost(name, limits[name])} ({limits[name]:,}); raise budget.{name}"
        )
        best = min(best or (over[name], message), (over[name], message))
    if best is not None:
        raise BudgetError(best[1])
