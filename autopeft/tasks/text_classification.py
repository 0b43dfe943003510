"""Text classification: one class for a text, or for a pair of texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from autopeft.errors import DataError
from autopeft.metrics import METRICS
from autopeft.spec.messages import echo, listed
from autopeft.spec.model import Head
from autopeft.spec.task import TASKS
from autopeft.tasks.base import Encoded, Evaluation, TokenizedSplit, WritingPrompt
from autopeft.tasks.checks import in_order

NO_LABEL = -1
"""Class index of an example whose label nobody knows."""
_FACTS = TASKS["text-classification"]


@dataclass(frozen=True, kw_only=True)
class TextClassification:
    """The task `text-classification`; see `autopeft.tasks.base.Task`."""

    name: str = "text-classification"
    metrics: tuple[str, ...] = (*METRICS, "loss")
    default_metric: str = _FACTS.default_metric
    forms: tuple[tuple[str, ...], ...] = (("text", "label"),)
    optional: tuple[str, ...] = ("text_pair", "group")

    def head(self, labels: Sequence[str]) -> Head:
        """Return a classification head with these classes."""
        return Head(auto_class=_FACTS.auto_class, labels=tuple(labels))

    def labels(self, tables: Mapping[str, pd.DataFrame], names: Sequence[str] | None) -> tuple[str, ...]:
        """Return the classes: as declared, else in the order of `in_order`.

        Raises:
            DataError: Training has fewer than two classes, or another split has one that training lacks.
        """
        found = set(tables["train"]["label"])
        if len(found) < 2:
            raise DataError(
                f"the training split must have at least two classes, but every label is {echo(found.pop())}; check "
                f"columns.label and the splits"
            )
        for split, table in tables.items():
            unknown = sorted(set(table["label"]) - found)
            if unknown:
                raise DataError(
                    f"every class must occur in the training split, but {split} has {echo(unknown[0])}, and training "
                    f"does not (it has {listed(in_order(found))}); drop those rows, or let the splits be made: "
                    f"splits.{split}: 0.15"
                )
        return tuple(names) if names is not None else tuple(in_order(found))

    def encode(self, table: pd.DataFrame, tokenizer: Any, *, max_length: int, labels: Sequence[str]) -> Encoded:
        """Tokenize texts or pairs; only those over the limit are tokenized again, truncated."""
        texts = table["text"].tolist()
        pairs = table["text_pair"].tolist() if "text_pair" in table else None
        encoded = _tokenize(tokenizer, texts, pairs)
        ids: list[list[int]] = encoded["input_ids"]
        types: list[list[int]] | None = encoded.get("token_type_ids")
        _check_read(ids, table)
        longest = max(map(len, ids))
        over = [row for row, tokens in enumerate(ids) if len(tokens) > max_length]
        if over:
            again = _tokenize(
                tokenizer,
                [texts[row] for row in over],
                None if pairs is None else [pairs[row] for row in over],
                truncation=True,
                max_length=max_length,
            )
            for at, row in enumerate(over):
                ids[row] = again["input_ids"][at]
                if types is not None:
                    types[row] = again["token_type_ids"][at]
        index = {label: position for position, label in enumerate(labels)}
        offsets = np.zeros(len(ids) + 1, dtype=np.int64)
        np.cumsum([len(tokens) for tokens in ids], out=offsets[1:])
        split = TokenizedSplit(
            input_ids=_flat(ids),
            token_type_ids=None if types is None else _flat(types),
            offsets=offsets,
            labels=np.array([index[label] for label in table["label"]], dtype=np.int64)
            if "label" in table
            else np.full(len(ids), NO_LABEL, dtype=np.int64),
        )
        return Encoded(split=split, n_truncated=len(over), longest=longest)

    def loss(self, outputs: Any, labels: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy of logits [batch, class], in fp32."""
        return torch.nn.functional.cross_entropy(outputs.logits.float(), labels)

    def rows(self, outputs: Any, labels: torch.Tensor) -> torch.Tensor:
        """Return the most likely class of each example and its loss."""
        logits = outputs.logits.float()
        best = logits.argmax(dim=-1).float()
        losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        rows = torch.stack([best, losses], dim=-1)
        return rows.masked_fill(~logits.isfinite().all(dim=-1, keepdim=True), float("nan"))

    def evaluation(self, rows: NDArray[np.float64], targets: NDArray[np.int64]) -> Evaluation:
        """Return every metric, and the predicted classes."""
        predictions, losses = rows.T
        results = {name: metric(targets, predictions.astype(np.int64)) for name, metric in METRICS.items()}
        results["loss"] = float(losses.mean()), float(losses.std() / np.sqrt(len(losses)))
        return Evaluation(
            scores={name: value for name, (value, _) in results.items()},
            standard_errors={name: error for name, (_, error) in results.items()},
            predictions=predictions,
        )

    def prompts(self, split: TokenizedSplit, n_at_most: int) -> list[WritingPrompt]:
        """Return nothing: a class is all that the model answers."""
        return []


def _check_read(ids: Sequence[Sequence[int]], table: pd.DataFrame) -> None:
    for row, tokens in zip(table.index, ids, strict=True):
        if not tokens:
            raise DataError(
                f"every text must become tokens, but that of row {row + 1} (counted from 1) of split "
                f"{table.index.name!r} becomes none; drop the row, or take a tokenizer that knows its characters"
            )


def _flat(rows: list[list[int]]) -> NDArray[np.int32]:
    return np.concatenate([np.asarray(row, dtype=np.int32) for row in rows])


def _tokenize(tokenizer: Any, texts: list[str], pairs: list[str] | None, **settings: Any) -> dict[str, Any]:
    both = (texts,) if pairs is None else (texts, pairs)
    # verbose=False: texts over the model's limit are expected here, and cut right after.
    return dict(tokenizer(*both, return_attention_mask=False, verbose=False, **settings))


TASK = TextClassification()
