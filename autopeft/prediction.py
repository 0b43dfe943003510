"""What a trained adapter says of new data: read as a search reads it, tokenized as in training, rows in their order."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from autopeft.errors import ArtifactError, DataError, ModelError
from autopeft.models.artifact import load, read_description
from autopeft.tasks.base import Encoded, Task, find_task
from autopeft.tasks.data import Table, by_role, find_columns, read
from autopeft.training.batches import collate
from autopeft.training.evaluate import batches_by_length

OnProgress = Callable[[int, int], None]
"""Called with how many rows are done, and how many there are."""
PROBABILITY_DIGITS = 6
"""Decimals that a probability is rounded to: more would be noise of the arithmetic."""
TARGETS = ("label", "group")
"""Column roles that only training and scoring need."""


@dataclass(frozen=True, kw_only=True)
class Purpose:
    """What an adapter was trained for, as its `autopeft.json` says.

    Attributes:
        labels: Class names in index order.
        max_length: Longest input in tokens.
        columns: Column by role in the data that it was trained on.
    """

    task: Task
    labels: tuple[str, ...]
    max_length: int
    columns: Mapping[str, str]

    @classmethod
    def of(cls, description: Mapping[str, Any]) -> "Purpose":
        """Read it from a description. Raises ArtifactError."""
        try:
            metadata = description["metadata"]
            return cls(
                task=find_task(metadata["task"]),
                labels=tuple(description["base_model"]["labels"]),
                max_length=int(metadata["max_length"]),
                columns=dict(metadata.get("columns") or {}),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"autopeft.json must name the task and the max_length of the training, but {error!r}; predict with "
                "the autopeft that wrote it, or export the adapter again"
            ) from error


@dataclass(frozen=True, kw_only=True, eq=False)
class Padding:
    """How batches are filled up; see `autopeft.training.batches.Padding`."""

    pad_token_id: int
    padding_side: Any


def predict(
    adapter: str | Path | tuple[torch.nn.Module, Any],
    data: Any,
    *,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    limit: int | None = None,
    batch_size: int = 64,
    probabilities: bool = False,
    base_model: str | None = None,
    device: str | None = None,
    on_progress: OnProgress | None = None,
) -> pd.DataFrame:
    """Predict with a trained adapter.

    Inputs that are longer than those of the training are truncated as they were there, with a warning
    that says how many.

    Args:
        adapter: An exported folder, or the model and the tokenizer that `autopeft.load` returned.
        data: As in `autopeft.search`; labels are not needed.
        columns: Column by role, such as `{"text": "review"}`, where it is neither the one of the training
            nor obvious.
        split: Which split, where the data has several.
        limit: Only the first rows.
        batch_size: Rows at a time; rows of about the same length go together.
        probabilities: Whether to add the probability of every class.
        base_model: Where the base model is now, if not where it was.
        device: Such as `cpu` or `cuda`; a GPU where there is one by default.
        on_progress: Called after each batch.

    Returns:
        The rows of the data in their order with all their columns, then `prediction` (the class) and
        `probability` (the model's own, of that class), then `probability_<class>` where asked for.

    Raises:
        DataError: The data cannot be read, lacks a column, or has one that the answer would overwrite.
        ArtifactError: The folder is no export, is damaged, or the base model is another one.
        ModelError: The base model or the device cannot be used.
    """
    opened = None if isinstance(adapter, str | Path) else adapter
    purpose = Purpose.of(_description(adapter))
    table, rows = _rows(data, purpose, columns, split, limit)
    _check_new(table.rows, purpose, probabilities)
    model, tokenizer = opened or load(str(adapter), base_model, device_map=_device(device))
    if tokenizer is None:
        raise ModelError("text needs the tokenizer of the base model, but its folder has none; give base_model")
    encoded = purpose.task.encode(rows, tokenizer, max_length=purpose.max_length, labels=purpose.labels)
    if encoded.n_truncated:
        warnings.warn(
            f"{encoded.n_truncated} of {len(rows)} inputs were truncated to {purpose.max_length} tokens, as in "
            f"training; the longest has {encoded.longest}",
            stacklevel=2,
        )
    shares = _class_probabilities(model, tokenizer, encoded, purpose, batch_size, on_progress)
    return pd.concat([table.rows, _answers(shares, purpose.labels, probabilities)], axis="columns")


def _description(adapter: str | Path | tuple[torch.nn.Module, Any]) -> Mapping[str, Any]:
    if isinstance(adapter, str | Path):
        return read_description(Path(adapter))
    known: Any = getattr(getattr(adapter[0], "config", None), "autopeft", None)
    if not isinstance(known, Mapping):
        raise ArtifactError(
            f"a model must be one that autopeft.load returned, but this {type(adapter[0]).__name__} is not; give the "
            "folder of the adapter"
        )
    return known


def _rows(
    data: Any, purpose: Purpose, columns: Mapping[str, str] | None, split: str | None, limit: int | None
) -> tuple[Table, pd.DataFrame]:
    """Return the data as it is, and its checked inputs with columns named by role."""
    parts = read(data)
    if split is None and len(parts) > 1:
        raise DataError(f"one split is predicted at a time, but the data has {', '.join(parts)}; name one as split")
    name = split or next(iter(parts))
    if name not in parts:
        raise DataError(f"split must be one of {', '.join(parts)}, but got {name!r}")
    if limit is not None and limit < 1:
        raise DataError(f"limit >= 1 must hold, but got {limit}")
    table = Table(rows=parts[name].rows.head(limit) if limit else parts[name].rows, names={})
    roles = [role for role in (*purpose.task.forms[0], *purpose.task.optional) if role not in TARGETS]
    trained = {role: column for role, column in purpose.columns.items() if role in roles}
    required = [role for role in roles if role in trained] or [r for r in purpose.task.forms[0] if r in roles]
    header = [str(column) for column in table.rows.columns]
    given = {role: column for role, column in trained.items() if column in header} | dict(columns or {})
    optional = [] if trained else [role for role in roles if role not in required]
    chosen = find_columns(header, given, required=required, optional=optional)
    return table, by_role(table, chosen, split=name)


def _check_new(rows: pd.DataFrame, purpose: Purpose, probabilities: bool) -> None:
    """Refuse data with a column that the answer would overwrite, before the model is loaded."""
    nothing = np.zeros((0, max(1, len(purpose.labels))))
    taken = [column for column in _answers(nothing, purpose.labels, probabilities) if column in rows]
    if taken:
        raise DataError(f"predictions go to new columns, but the data has {taken[0]!r}; rename or drop that one")


def _device(wanted: str | None) -> str:
    if wanted is None or wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(wanted).type
    except RuntimeError:
        raise ModelError(f"device must be such as cpu, cuda or cuda:1, but got {wanted!r}") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device must be there, but torch sees no CUDA device for {wanted!r}; take cpu")
    return wanted


def _class_probabilities(
    model: torch.nn.Module,
    tokenizer: Any,
    encoded: Encoded,
    purpose: Purpose,
    batch_size: int,
    on_progress: OnProgress | None,
) -> NDArray[np.float64]:
    """Return the probability of each class [row, class]."""
    split, device = encoded.split, next(model.parameters()).device
    padding = Padding(pad_token_id=tokenizer.pad_token_id, padding_side=tokenizer.padding_side)
    shares, done = np.empty((len(split), len(purpose.labels))), 0
    with torch.inference_mode():
        for indices, n_tokens in batches_by_length(split, batch_size, purpose.max_length):
            logits: Any = model(**collate(split, indices, n_tokens, padding, device).forward).logits
            shares[indices] = logits.double().softmax(dim=-1).cpu().numpy().round(PROBABILITY_DIGITS)
            done += len(indices)
            if on_progress is not None:
                on_progress(done, len(split))
    if not np.isfinite(shares).all():
        raise ArtifactError("a trained model's outputs must be finite, but some are not; was this adapter trained?")
    return shares


def _answers(shares: NDArray[np.float64], labels: tuple[str, ...], probabilities: bool) -> pd.DataFrame:
    """Return the answer as columns, from the probabilities [row, class]."""
    best = shares.argmax(axis=1)
    answers: dict[str, Any] = {"prediction": np.asarray(labels, dtype=object)[best], "probability": shares.max(axis=1)}
    if probabilities:
        answers |= {f"probability_{label}": shares[:, index] for index, label in enumerate(labels)}
    return pd.DataFrame(answers)
