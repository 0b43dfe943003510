"""Text classification: one class for a text, or for a pair of texts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.special import softmax

from autopeft.errors import DataError
from autopeft.metrics import METRICS, Metric
from autopeft.models.base import Base
from autopeft.spec.messages import echo, listed
from autopeft.spec.objective import OBJECTIVES
from autopeft.tasks.base import Answer, Encoded, Evaluation, Question, Task
from autopeft.tasks.batches import Inputs
from autopeft.tasks.checks import in_order, similar_classes
from autopeft.tasks.inputs import example_inputs, token_ids
from autopeft.tasks.texts import encode_texts, model_outputs

NO_LABEL = -1
"""Class index of an example whose label nobody knows."""
PROBABILITY_DIGITS = 6
"""Decimals that a probability is rounded to: more would be noise of the arithmetic."""


def _mean(_targets: NDArray[Any], losses: NDArray[np.float64]) -> tuple[float, float]:
    return float(losses.mean()), float(losses.std() / np.sqrt(len(losses)))


class TextClassification(Task):
    """The task `text-classification`; see `autopeft.tasks.base.Task`."""

    name: str = "text-classification"
    metrics: Mapping[str, Metric] = METRICS | {"loss": Metric(objective=OBJECTIVES["loss"], score=_mean)}
    default_metric: str = "accuracy"
    forms: tuple[tuple[str, ...], ...] = (("text", "label"),)
    optional: tuple[str, ...] = ("text_pair", "group")
    targets: tuple[str, ...] = ("label",)
    auto_class: str = "AutoModelForSequenceClassification"
    pipeline_tag: str = "text-classification"
    example_labels: tuple[str, ...] = ("0", "1")

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
        """Tokenize texts or pairs of texts; see `encode_texts`."""
        index = {label: position for position, label in enumerate(labels)}
        found = [index[label] for label in table["label"]] if "label" in table else [NO_LABEL] * len(table)
        return encode_texts(table, tokenizer, np.array(found, dtype=np.int64), max_length=max_length)

    def notes(self, tables: Mapping[str, pd.DataFrame], tokenizer: Any, labels: Sequence[str]) -> list[str]:
        """Return a note where classes look alike."""
        return similar_classes(labels)

    def example_batch(self, base: Base, *, batch_size: int, n_tokens: int, device: torch.device) -> Inputs:
        """Return inputs with a class for each example."""
        return Inputs(
            forward=example_inputs(base, batch_size=batch_size, n_tokens=n_tokens, device=device),
            labels=token_ids(batch_size, device=device),
        )

    def loss(self, outputs: Any, labels: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy of logits [batch, class], in fp32."""
        return torch.nn.functional.cross_entropy(outputs.logits.float(), labels)

    def rows(self, outputs: Any, labels: torch.Tensor) -> torch.Tensor:
        """Return the most likely class of each example and its loss, [batch, 2]."""
        logits = outputs.logits.float()
        best = logits.argmax(dim=-1).float()
        losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        rows = torch.stack([best, losses], dim=-1)
        return rows.masked_fill(~logits.isfinite().all(dim=-1, keepdim=True), float("nan"))

    def evaluation(self, rows: NDArray[np.float64], targets: NDArray[Any]) -> Evaluation:
        """Return every metric, and the predicted classes."""
        predictions, losses = rows.T
        results = {name: metric.score(targets, predictions.astype(np.int64)) for name, metric in METRICS.items()}
        results["loss"] = self.metrics["loss"].score(targets, losses)
        return Evaluation(
            scores={name: value for name, (value, _) in results.items()},
            standard_errors={name: error for name, (_, error) in results.items()},
            predictions=predictions,
        )

    def answer_columns(self, labels: Sequence[str], *, probabilities: bool) -> list[str]:
        """Return the class and its probability, and the probability of every class where that is asked for."""
        return ["prediction", "probability", *([f"probability_{label}" for label in labels] if probabilities else [])]

    def answer(self, question: Question) -> Answer:
        """Return the most likely class of each text with the model's own probability."""
        labels, rows = question.labels, question.rows
        encoded = self.encode(rows, question.tokenizer, max_length=question.max_length, labels=labels)
        shares = softmax(model_outputs(question, encoded), axis=1).round(PROBABILITY_DIGITS)
        classes = np.asarray(labels, dtype=object)[shares.argmax(axis=1)]
        names = self.answer_columns(labels, probabilities=question.probabilities)
        columns = [classes, shares.max(axis=1), *(shares.T if question.probabilities else ())]
        return Answer(
            columns=pd.DataFrame(dict(zip(names, columns, strict=True))),
            n_truncated=encoded.n_truncated,
            n_read=question.max_length,
            longest=encoded.longest,
        )


TASK = TextClassification()
