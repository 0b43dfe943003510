"""What a task is: its data, its loss, its metrics and its answers.

A task is one file, here or in another package, that an entry point in the group `autopeft.tasks` names. Everything else
knows tasks only through the protocol here.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from autopeft.metrics import Metric
from autopeft.models.base import Base
from autopeft.spec.model import Head
from autopeft.spec.task import load_task
from autopeft.tasks.batches import Inputs
from autopeft.tasks.examples import Examples


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
    train: Examples
    validation: Examples
    test: Examples
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

    split: Examples
    n_truncated: int
    n_cut: int = 0
    longest: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """What a model does on a split.

    Attributes:
        scores: Every metric of the task.
        standard_errors: Of each score, over the examples.
        predictions: For each example, in the order of the split, what the task's metrics compare designs
            by: the class, [n_examples], or a row of numbers, [n_examples, n_columns].
    """

    scores: dict[str, float]
    standard_errors: dict[str, float]
    predictions: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class WritingPrompt:
    """What a trained model is asked to go on from, and what the data has there; token ids."""

    prompt: NDArray[np.int32]
    reference: NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """What a trained model is asked about new data.

    Attributes:
        rows: Checked inputs, with columns named by role.
        model: The base with the adapter, in evaluation mode.
        tokenizer: Of the base model.
        labels: As in training.
        max_length: Longest input in tokens, as in training.
        n_added_tokens: Tokens that the adapter puts before every input.
        batch_size: Rows at a time.
        probabilities: Whether the probability of every class is asked for.
        max_new_tokens: Tokens that are written after a prompt at most.
        on_progress: Called with how many rows are done.
    """

    rows: pd.DataFrame
    model: Any
    tokenizer: Any
    labels: tuple[str, ...]
    max_length: int
    n_added_tokens: int
    batch_size: int
    probabilities: bool
    max_new_tokens: int
    on_progress: Callable[[int], None] = lambda _: None

    @property
    def device(self) -> torch.device:
        """Return where the model is."""
        return next(self.model.parameters()).device  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """What a trained model says of new data.

    Attributes:
        columns: One row for each row of the question: `prediction`, and what else the task says.
        n_truncated: Inputs that were longer than what was read of them.
        n_read: Tokens that were read of those.
        longest: Tokens of the longest input.
    """

    columns: pd.DataFrame
    n_truncated: int
    n_read: int
    longest: int


class Task(Protocol):
    """All that autopeft asks of a task; a task is one class in one file that inherits from this one.

    Attributes:
        name: In study files and on the command line; the name of its entry point.
        metrics: The quality metrics that `evaluation` returns, by name.
        default_metric: The one that designs are compared on where a study names none.
        forms: What data can look like: column roles that belong together, of one form or another.
        optional: Column roles that the data may have.
        implied: By role of the form, the optional roles that a column of their own name is taken for.
        targets: Column roles that only training and scoring need.
        auto_class: Class of transformers that has the model's head.
        pipeline_tag: What model hubs call the task.
        example_labels: Classes that an estimate assumes where no data says which; empty where the task has none.
    """

    name: str
    metrics: Mapping[str, Metric]
    default_metric: str
    forms: tuple[tuple[str, ...], ...]
    optional: tuple[str, ...] = ("group",)
    implied: Mapping[str, tuple[str, ...]] = {}
    targets: tuple[str, ...] = ()
    auto_class: str
    pipeline_tag: str
    example_labels: tuple[str, ...] = ()

    # Data -----------------------------------------------------------------------------------------------------------

    def labels(self, tables: Mapping[str, pd.DataFrame], names: Sequence[str] | None) -> tuple[str, ...]:
        """Return the classes in index order, from the training split; raise `DataError` if they cannot be learned.

        Args:
            tables: Checked examples by split, with columns named by role.
            names: The classes as the data set declares them, where it does.
        """
        return ()

    def encode(self, table: pd.DataFrame, tokenizer: Any, *, max_length: int, labels: Sequence[str]) -> Encoded:
        """Tokenize the examples of one split, truncated to `max_length` tokens; what is to be predicted may lack."""

    def notes(self, tables: Mapping[str, pd.DataFrame], tokenizer: Any, labels: Sequence[str]) -> list[str]:
        """Return what people should know of the data, besides what is said of every task's."""
        return []

    def example_batch(self, base: Base, *, batch_size: int, n_tokens: int, device: torch.device) -> Inputs:
        """Return a batch without data, for dry runs and timings, made in the tensor mode that is active."""

    # The model ------------------------------------------------------------------------------------------------------

    @property
    def example_head(self) -> Head:
        """Return the head that an estimate assumes where no data says which classes there are."""
        return self.head(self.example_labels)

    def head(self, labels: Sequence[str]) -> Head:
        """Return what the task asks of the model."""
        return Head(auto_class=self.auto_class, labels=tuple(labels), task=self.name)

    def loss(self, outputs: Any, labels: torch.Tensor) -> torch.Tensor:
        """Return what training minimises on a batch, a scalar in fp32."""

    # Evaluation -----------------------------------------------------------------------------------------------------

    def rows(self, outputs: Any, labels: torch.Tensor) -> torch.Tensor:
        """Return what an evaluation keeps of each example of a batch, [batch, column]; NaN where it is not finite."""

    def evaluation(self, rows: NDArray[np.float64], targets: NDArray[Any]) -> Evaluation:
        """Return scores and predictions of a whole split from its rows and its `targets`."""
        results = {name: metric.score(targets, rows) for name, metric in self.metrics.items()}
        return Evaluation(
            scores={name: value for name, (value, _) in results.items()},
            standard_errors={name: error for name, (_, error) in results.items()},
            predictions=rows,
        )

    def prompts(self, examples: Examples, n_at_most: int) -> list[WritingPrompt]:
        """Return what a trained model is asked to write on, always the same; nothing where the task does not write."""
        return []

    # Prediction -----------------------------------------------------------------------------------------------------

    def answer_columns(self, labels: Sequence[str], *, probabilities: bool) -> list[str]:
        """Return the names of the columns that `answer` makes."""
        return ["prediction"]

    def answer(self, question: Question) -> Answer:
        """Return what a trained model says of new data, without gradients."""


def find_task(name: str) -> Task:
    """Return the task called `name`.

    Raises:
        StudyError: There is none.
        MissingDependencyError: It cannot be imported.
    """
    task: Task = load_task(name)
    return task


def task_of(head: Head) -> Task:
    """Return the task whose loss trains a head."""
    return find_task(head.task or ("text-classification" if head.labels else "causal-lm"))


def fingerprint(splits: Sequence[Examples], **settings: object) -> str:
    """Return a SHA-256 over arrays and settings: equal exactly when training would see the same data."""
    digest = hashlib.sha256(repr(sorted(settings.items())).encode())
    for split in splits:
        for array in split.arrays:
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
