"""The yardstick of a study on a model: the design that most people would try first."""

from collections.abc import Mapping
from typing import Any

from autopeft.errors import DesignError
from autopeft.spec.design import Design
from autopeft.spec.model import ModelSummary

DEFAULT_YARDSTICK: dict[str, Any] = {
    "quantization": "none",
    "blocks": [{"lora": {"rank": 8, "alpha": 16, "roles": ["query", "value"], "layers": "all"}}],
}
"""The design that most people would try first; the front is measured against it."""

_ON_ALL_ROLES = {"blocks": [{"lora": {"rank": 8, "alpha": 16, "roles": "all", "layers": "all"}}]}


def fit_yardstick(values: Mapping[str, Any] | None, model: ModelSummary) -> Design | None:
    """Return the yardstick in its form on a model, or None where the study wants none.

    The default one takes all roles of a model whose layers have no map for queries or none for values.

    Raises:
        DesignError: The model cannot have it.
    """
    if values is None:
        return None
    design = Design.from_dict(values).resolve(model)
    try:
        design.check(model)
    except DesignError as error:
        on_all = Design.from_dict(_ON_ALL_ROLES).resolve(model)
        if values == DEFAULT_YARDSTICK and _is_legal(on_all, model):
            return on_all
        raise DesignError(
            f"the yardstick must be a design that {model.architecture} can have, but {error}; set yardstick to another "
            "design, or to null for none"
        ) from error
    return design


def _is_legal(design: Design, model: ModelSummary) -> bool:
    try:
        design.check(model)
    except DesignError:
        return False
    return True
