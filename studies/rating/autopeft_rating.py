"""A task from outside autopeft: how high a text is rated, as a number.

The model has one output, and learns standardised ratings by their squared error. The scale is a constant of the task,
so that no state beside the adapter is needed to read a prediction.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from autopeft.metrics import Metric, bootstrapped
from autopeft.models.base import Base
from autopeft.spec.objective import Objective
from autopeft.tasks.base import Answer, Encoded, Question, Task
from autopeft.tasks.batches import Inputs
from autopeft.tasks.checks import numbers
from autopeft.tasks.inputs import example_inputs
from autopeft.tasks.texts import encode_texts, model_outputs

CENTRE, SPREAD = 50.0, 25.0
"""Ratings run from 0 to 100: the model learns (rating - CENTRE) / SPREAD."""


def spearman(targets: NDArray[Any], predictions: NDArray[Any]) -> float:
    """Return the correlation of ranks; 0 where either side is constant."""
    ranks = rankdata(targets), rankdata(predictions)
    return 0.0 if min(np.ptp(each) for each in ranks) == 0 else float(np.corrcoef(*ranks)[0, 1])


def rmse(targets: NDArray[Any], predictions: NDArray[Any]) -> float:
    """Return the root of the mean squared error, in points of the rating."""
    return float(np.sqrt(np.mean((targets - predictions) ** 2)))


METRICS = {
    "spearman": bootstrapped(
        Objective(
            name="spearman", direction="maximize", kind="quality", label="Spearman correlation", best=1.0, worst=0.0
        ),
        spearman,
    ),
    "rmse": bootstrapped(
        Objective(name="rmse", direction="minimize", kind="quality", label="RMSE", best=0.0, worst=2 * SPREAD), rmse
    ),
}


class Rating(Task):
    """Predicts a number from 0 to 100 for each text."""

    name: str = "rating"
    metrics: Mapping[str, Metric] = METRICS
    default_metric: str = "spearman"
    forms: tuple[tuple[str, ...], ...] = (("text", "rating"),)
    targets: tuple[str, ...] = ("rating",)
    auto_class: str = "AutoModelForSequenceClassification"
    pipeline_tag: str = "text-classification"
    example_labels: tuple[str, ...] = ("rating",)

    def labels(self, tables: Mapping[str, pd.DataFrame], names: Sequence[str] | None) -> tuple[str, ...]:
        """Return the name of the one output."""
        return self.example_labels

    def encode(self, table: pd.DataFrame, tokenizer: Any, *, max_length: int, labels: Sequence[str]) -> Encoded:
        """Tokenize texts; a rating that nobody knows is not a number."""
        known = numbers(table, "rating", at_least=0, at_most=100) if "rating" in table else np.full(len(table), np.nan)
        return encode_texts(table, tokenizer, known.astype(np.float32), max_length=max_length)

    def example_batch(self, base: Base, *, batch_size: int, n_tokens: int, device: torch.device) -> Inputs:
        """Return inputs with a number for each example."""
        return Inputs(
            forward=example_inputs(base, batch_size=batch_size, n_tokens=n_tokens, device=device),
            labels=torch.empty(batch_size, device=device),
        )

    def loss(self, outputs: Any, labels: torch.Tensor) -> torch.Tensor:
        """Return the mean squared error of outputs [batch, 1] against standardised ratings."""
        return torch.nn.functional.mse_loss(outputs.logits[:, 0].float(), (labels - CENTRE) / SPREAD)

    def rows(self, outputs: Any, labels: torch.Tensor) -> torch.Tensor:
        """Return the predicted rating, [batch, 1]."""
        return outputs.logits.float() * SPREAD + CENTRE

    def evaluation(self, rows: NDArray[np.float64], targets: NDArray[Any]) -> Any:
        """Return both metrics of the predicted ratings, [n_examples]."""
        return super().evaluation(rows[:, 0], targets)

    def answer(self, question: Question) -> Answer:
        """Return the predicted rating of each text."""
        encoded = self.encode(question.rows, question.tokenizer, max_length=question.max_length, labels=question.labels)
        ratings = model_outputs(question, encoded)[:, 0] * SPREAD + CENTRE
        return Answer(
            columns=pd.DataFrame({"prediction": ratings.round(3)}),
            n_truncated=encoded.n_truncated,
            n_read=question.max_length,
            longest=encoded.longest,
        )


TASK = Rating()
