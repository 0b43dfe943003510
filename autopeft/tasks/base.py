"""What a task is, and the tokenized data that it makes.

A task is one module of this package that defines `TASK`; it is found by itself. Training knows tasks
only through the protocol here.
"""

import hashlib
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from autopeft.errors import StudyError
from autopeft.models.base import Head
from autopeft.spec.messages import one_of


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenizedSplit:
    """Tokenized examples of one split, concatenated without padding.

    Attributes:
        input_ids: Token ids of all examples, one after the other; int32.
        token_type_ids: Segment ids of the same shape, or None where the model takes none.
        offsets: Example `i` is `input_ids[offsets[i]:offsets[i + 1]]`; int64, `n_examples + 1` long.
        labels: Class index of each example; int64.
    """

    input_ids: NDArray[np.int32]
    token_type_ids: NDArray[np.int32] | None = None
    offsets: NDArray[np.int64]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.labels)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Return the tokens of each example."""
        return np.diff(self.offsets)

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """Return the arrays that are there, in a fixed order."""
        types = () if self.token_type_ids is None else (self.token_type_ids,)
        return self.input_ids, *types, self.offsets, self.labels


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedData:
    """All that workers need of a data set: tokenized once, sent to each.

    Attributes:
        metric: The quality that designs are compared on.
        labels: Class names in index order.
        fingerprint: SHA-256 over the tokens, labels and order of all splits.
        notes: What people should know: how the splits were made, what was truncated, what is shared.
        max_length: Longest input in tokens that any split may hold.
    """

    task: str
    metric: str
    labels: tuple[str, ...]
    train: TokenizedSplit
    validation: TokenizedSplit
    test: TokenizedSplit
    pad_token_id: int
    padding_side: Literal["left", "right"]
    fingerprint: str
    notes: tuple[str, ...] = ()
    max_length: int


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A split after tokenization, with what truncation did to it.

    Attributes:
        n_truncated: Examples that were longer than the limit.
        longest: Tokens of the longest example before truncation.
    """

    split: TokenizedSplit
    n_truncated: int
    longest: int


class Task(Protocol):
    """What training and preparation ask of a task.

    Attributes:
        name: In study files and on the command line.
        metrics: Names of the quality metrics that `score` returns.
        default_metric: Used where a study names none.
        required: Column roles that the data must have.
        optional: Column roles that the data may have.
    """

    name: str
    metrics: tuple[str, ...]
    default_metric: str
    required: tuple[str, ...]
    optional: tuple[str, ...]

    def head(self, labels: Sequence[str]) -> Head:
        """Return what the task asks of the model."""

    def labels(self, tables: Mapping[str, pd.DataFrame], names: Sequence[str] | None) -> tuple[str, ...]:
        """Return the classes in index order, from the training split; raise `DataError` if they cannot be learned.

        Args:
            tables: Checked examples by split, with columns named by role.
            names: The classes as the data set declares them, where it does.
        """

    def encode(self, table: pd.DataFrame, tokenizer: Any, *, max_length: int, labels: Sequence[str]) -> Encoded:
        """Tokenize the examples of one split, truncated to `max_length` tokens."""

    def losses(self, outputs: Any, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of each example of a batch, in fp32; training minimises their mean."""

    def predictions(self, outputs: Any) -> torch.Tensor:
        """Return one prediction for each example of the batch; NaN where the model's output is not finite."""

    def score(
        self, predictions: NDArray[np.float64], targets: NDArray[np.int64]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Return every metric but `loss`, and its standard error over examples."""


@cache
def _tasks() -> dict[str, Task]:
    package = importlib.import_module("autopeft.tasks")
    modules = [
        importlib.import_module(f"autopeft.tasks.{info.name}") for info in pkgutil.iter_modules(package.__path__)
    ]
    return {module.TASK.name: module.TASK for module in modules if hasattr(module, "TASK")}


def find_task(name: str) -> Task:
    """Return the task called `name`.

    Raises:
        StudyError: There is none.
    """
    known = _tasks()
    if name not in known:
        raise StudyError(f"task {one_of(sorted(known), name)}")
    return known[name]


def fingerprint(splits: Sequence[TokenizedSplit], **settings: object) -> str:
    """Return a SHA-256 over arrays and settings: equal exactly when training would see the same data."""
    digest = hashlib.sha256(repr(sorted(settings.items())).encode())
    for split in splits:
        for array in split.arrays:
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
