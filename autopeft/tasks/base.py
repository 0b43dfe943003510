"""What a task is, and the tokenized data that it makes.

A task is one module of this package that defines `TASK`; it is found by itself. Training knows tasks
only through the protocol here.
"""

import hashlib
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from autopeft.errors import StudyError
from autopeft.models.losses import IGNORED
from autopeft.spec.messages import one_of
from autopeft.spec.model import Head


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenizedSplit:
    """Tokenized examples of one split, concatenated without padding.

    Attributes:
        input_ids: Token ids of all examples, one after the other; int32.
        token_type_ids: Segment ids of the same shape, or None where the model takes none.
        offsets: Example `i` is `input_ids[offsets[i]:offsets[i + 1]]`; int64, `n_examples + 1` long.
        labels: Class index of each example, int64; or, `per_token`, of the shape and dtype of `input_ids`: the
            token itself where it is to be predicted from those before it, `IGNORED` elsewhere.
        per_token: Whether labels are those of tokens.
    """

    input_ids: NDArray[np.int32]
    token_type_ids: NDArray[np.int32] | None = None
    offsets: NDArray[np.int64]
    labels: NDArray[Any]
    per_token: bool = False

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Return the tokens of each example."""
        return np.diff(self.offsets)

    @property
    def targets(self) -> NDArray[np.int64]:
        """Return what predictions of examples are compared with: the class, or the number of target tokens, of each."""
        if not self.per_token:
            return self.labels
        n_before = np.concatenate([[0], np.cumsum(self.labels != IGNORED)])
        return np.diff(n_before[self.offsets])

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
        columns: The data's column by role.
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
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A split after tokenization, with what the limit on its length did to it.

    Attributes:
        n_truncated: Examples that were longer than the limit, and lost what was over.
        n_cut: Texts that were longer than the limit, and became several examples.
        longest: Tokens of the longest example before that.
    """

    split: TokenizedSplit
    n_truncated: int
    n_cut: int = 0
    longest: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """What a model does on a split.

    Attributes:
        scores: Every metric of the task.
        standard_errors: Of each score, over the examples.
        predictions: For each example, in the order of the split, what `autopeft.metrics` compares designs by: the
            class, [n_examples], or a row of numbers, [n_examples, n_columns].
    """

    scores: dict[str, float]
    standard_errors: dict[str, float]
    predictions: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class WritingPrompt:
    """What a trained model is asked to go on from, and what the data has there; token ids."""

    prompt: NDArray[np.int32]
    reference: NDArray[np.int32]


class Task(Protocol):
    """What training and preparation ask of a task.

    Attributes:
        name: In study files and on the command line.
        metrics: Names of the quality metrics that `evaluation` returns.
        default_metric: Used where a study names none.
        forms: What data can look like: column roles that belong together, of one form or another.
        optional: Column roles that the data may have.
    """

    name: str
    metrics: tuple[str, ...]
    default_metric: str
    forms: tuple[tuple[str, ...], ...]
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
        """Tokenize the examples of one split, truncated to `max_length` tokens; what is to be predicted may lack."""

    def loss(self, outputs: Any, labels: torch.Tensor) -> torch.Tensor:
        """Return what training minimises on a batch, a scalar in fp32."""

    def rows(self, outputs: Any, labels: torch.Tensor) -> torch.Tensor:
        """Return what an evaluation keeps of each example of a batch, [batch, column]; NaN where it is not finite."""

    def evaluation(self, rows: NDArray[np.float64], targets: NDArray[np.int64]) -> Evaluation:
        """Return scores and predictions of a whole split from its rows and its `targets`."""

    def prompts(self, split: TokenizedSplit, n_at_most: int) -> list[WritingPrompt]:
        """Return what a trained model is asked to write on, always the same; nothing where the task does not write."""


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
