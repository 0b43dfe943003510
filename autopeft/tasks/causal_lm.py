"""Causal language modelling: continue a text, complete a prompt, or answer in a conversation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from autopeft.errors import DataError
from autopeft.metrics import TOKEN_METRICS
from autopeft.models.losses import token_loss, token_rows
from autopeft.spec.model import Head
from autopeft.spec.task import TASKS
from autopeft.tasks.base import Encoded, Evaluation, TokenizedSplit, WritingPrompt
from autopeft.tasks.sequences import (
    TargetSequence,
    check_targets,
    from_completions,
    from_conversations,
    from_texts,
    last_targets,
    pieces,
    shorten,
)

_FACTS = TASKS["causal-lm"]


@dataclass(frozen=True, kw_only=True)
class CausalLM:
    """The task `causal-lm`; see `autopeft.tasks.base.Task`.

    Only what a model is to write is learned and scored: all of a plain text, the completion of a prompt,
    the assistant's turns of a conversation.
    """

    name: str = "causal-lm"
    metrics: tuple[str, ...] = tuple(TOKEN_METRICS)
    default_metric: str = _FACTS.default_metric
    forms: tuple[tuple[str, ...], ...] = (("text",), ("prompt", "completion"), ("messages",))
    optional: tuple[str, ...] = ("tools", "group")

    def head(self, labels: Sequence[str]) -> Head:  # a language model has no classes
        """Return the language model's own head, which is part of the base."""
        return Head(auto_class=_FACTS.auto_class)

    def labels(self, tables: Mapping[str, pd.DataFrame], names: Sequence[str] | None) -> tuple[str, ...]:
        """Return no classes."""
        return ()

    def encode(self, table: pd.DataFrame, tokenizer: Any, *, max_length: int, labels: Sequence[str]) -> Encoded:
        """Tokenize examples; plain texts that are too long become several, others keep what they are to say.

        Raises:
            DataError: There is no room for a token and the one before it, or the tokenizer lacks what is needed.
        """
        if max_length < 2:
            raise DataError(
                f"training.max_length >= 2 must hold, but got {max_length}: a token is predicted from others"
            )
        sequences = _sequences(table, tokenizer)
        check_targets(sequences, table)
        over = [sequence for sequence in sequences if len(sequence) > max_length]
        longest = max(map(len, sequences))
        is_plain = "text" in table
        if is_plain:
            sequences = [piece for sequence in sequences for piece in pieces(sequence, max_length)]
        else:
            begin = tokenizer.bos_token_id
            sequences = [shorten(sequence, max_length, begin=begin) for sequence in sequences]
        return Encoded(
            split=_split(sequences),
            n_truncated=0 if is_plain else len(over),
            n_cut=len(over) if is_plain else 0,
            longest=longest,
        )

    def loss(self, outputs: Any, labels: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy over the target tokens of a batch."""
        return token_loss(outputs.logits, labels)

    def rows(self, outputs: Any, labels: torch.Tensor) -> torch.Tensor:
        """Return the sum of negative log-likelihood and the number of right tokens of each example."""
        return token_rows(outputs.logits, labels)

    def evaluation(self, rows: NDArray[np.float64], targets: NDArray[np.int64]) -> Evaluation:
        """Return loss, perplexity and token accuracy of the whole split, and the rows as predictions."""
        results = {name: metric(targets, rows) for name, metric in TOKEN_METRICS.items()}
        return Evaluation(
            scores={name: value for name, (value, _) in results.items()},
            standard_errors={name: error for name, (_, error) in results.items()},
            predictions=rows,
        )

    def prompts(self, split: TokenizedSplit, n_at_most: int) -> list[WritingPrompt]:
        """Return the first examples of a split with different prompts.

        What is asked for is the last stretch of targets; of a plain text, all but its first third.
        """
        found: dict[bytes, WritingPrompt] = {}
        for start, stop in zip(split.offsets[:-1], split.offsets[1:], strict=True):
            if len(found) == n_at_most:
                break
            ids = split.input_ids[start:stop]
            first, last = last_targets(split.labels[start:stop])
            if first <= 1:
                first = max(1, len(ids) // 3)
            prompt = WritingPrompt(prompt=ids[:first], reference=ids[first:last])
            found.setdefault(prompt.prompt.tobytes(), prompt)
        return list(found.values())


def _sequences(table: pd.DataFrame, tokenizer: Any) -> list[TargetSequence]:
    if "messages" in table:
        return from_conversations(table, tokenizer)
    if "completion" in table:
        return from_completions(table["prompt"].tolist(), table["completion"].tolist(), tokenizer)
    return from_texts(table["text"].tolist(), tokenizer)


def _split(sequences: Sequence[TargetSequence]) -> TokenizedSplit:
    offsets = np.zeros(len(sequences) + 1, dtype=np.int64)
    np.cumsum([len(sequence) for sequence in sequences], out=offsets[1:])
    return TokenizedSplit(
        input_ids=np.concatenate([sequence.ids for sequence in sequences]),
        offsets=offsets,
        labels=np.concatenate([sequence.labels for sequence in sequences]),
        per_token=True,
    )


TASK = CausalLM()
