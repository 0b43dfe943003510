"""What must hold of every architecture: a default search works, or is refused in one line before training."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import autopeft
from autopeft.costs.support import require_estimates
from autopeft.errors import AutopeftError, ModelError
from autopeft.models.base import build_meta
from autopeft.spec.space import SearchSpace
from autopeft.spec.trial import Outcome
from autopeft.spec.unsupported import leave_out_unsupported
from autopeft.spec.yardstick import DEFAULT_YARDSTICK, fit_yardstick
from autopeft.tasks.base import find_task
from tests.architectures import tiny

SPACE = "hybrid"
TRAINING = {"epochs": 1, "batch_size": 8, "max_length": 16, "precision": "fp32", "kernel": "eager"}
SPLITS = {"train": 12, "validation": 8, "test": 4}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What autopeft says of an architecture before it trains anything.

    Attributes:
        refusal: Why a default search cannot be had, in one line; empty where it can.
        left_out: The techniques of the default space that the architecture cannot have.
    """

    refusal: str = ""
    left_out: tuple[str, ...] = ()


def ask(task: str, model_type: str, folder: Path) -> Answer:
    """Return what the checks before a search say of a tiny model of which `folder` gets the configuration alone."""
    tiny.make_config(task, model_type).save_pretrained(folder)
    head = find_task(task).head(("a", "b") if task == "text-classification" else ())
    try:
        base = build_meta(str(folder), head, kernel="eager", needs_weights=False)
        model = base.summary
        wanted = SearchSpace.load(SPACE)
        space, _ = leave_out_unsupported(wanted, model)
        space.check(model)
        fit_yardstick(DEFAULT_YARDSTICK, model)
        require_estimates(base)
    except AutopeftError as error:
        return Answer(refusal=str(error).replace(str(folder), "the model"))
    kinds = {block.kind for block in space.blocks}
    return Answer(left_out=tuple(block.kind for block in wanted.blocks if block.kind not in kinds))


def search(task: str, model_type: str, folder: Path) -> list[str]:
    """Run a default search of two designs on a tiny model, and use what it exports; return the designs in words.

    Raises:
        AutopeftError: The search was refused.
        AssertionError: A trial failed, or an export does not load or answer.
    """
    data = pd.DataFrame(tiny.make_rows())
    data = data if task == "text-classification" else data[["text"]]
    result = autopeft.search(
        model=tiny.save_model(task, model_type, folder / "model"),
        data=data,
        task=task,
        training=TRAINING,
        splits=SPLITS,
        n_trials=2,
        study_name="study",
        output_dir=str(folder / "runs"),
        early_stopping="off",
        progress=False,
    )
    for trial in result.state.chains:
        assert trial.outcome is Outcome.COMPLETE, f"{trial.design.describe()}: {trial.outcome}, {trial.reason}"
    exported = sorted((folder / "runs" / "study" / "adapters").iterdir())
    assert exported
    options: dict[str, Any] = {"max_new_tokens": 2} if task == "causal-lm" else {}
    for path in exported:
        autopeft.load(path)
        if task == "causal-lm" and model_type in tiny.CANNOT_WRITE:
            with pytest.raises(ModelError, match="a language model must write, but transformers does not let"):
                autopeft.predict(path, data.head(2), **options)
        else:
            assert len(autopeft.predict(path, data.head(2), **options)) == 2
    return [trial.design.describe() for trial in result.state.chains]
