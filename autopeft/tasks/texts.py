"""Texts and pairs of texts as a model's inputs, for tasks that give one answer for each; and what a model answers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autopeft.errors import ArtifactError, DataError
from autopeft.models.padding import pad_token_id
from autopeft.tasks.base import Encoded, Question
from autopeft.tasks.batches import batches_by_length, collate
from autopeft.tasks.examples import Examples, Ragged
from autopeft.tasks.vocabulary import fit


def encode_texts(table: pd.DataFrame, tokenizer: Any, labels: NDArray[Any], *, max_length: int) -> Encoded:
    """Tokenize texts, or pairs of texts; only those over the limit are tokenized again, truncated.

    Args:
        table: With the columns `text` and, where there are pairs, `text_pair`.
        tokenizer: Of the base model.
        labels: What is to be predicted of each, [n_rows, ...].
        max_length: In tokens.

    Raises:
        DataError: A text becomes no token.
    """
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
    inputs = {"input_ids": Ragged.of(ids, fill=pad_token_id(tokenizer) or 0)}
    if types is not None:
        inputs["token_type_ids"] = Ragged(values=Ragged.of(types).values, offsets=inputs["input_ids"].offsets)
    return Encoded(split=Examples(inputs=inputs, labels=labels), n_truncated=len(over), longest=longest)


def model_outputs(question: Question, encoded: Encoded) -> NDArray[np.float64]:
    """Return the model's logits for each text, [n_rows, n_outputs].

    Args:
        question: Gives the model.
        encoded: What `encode_texts` made of its rows.

    Raises:
        ArtifactError: An output is not finite.
        ModelError: The model cannot read what the tokenizer writes.
    """
    examples = fit(encoded.split, question.tokenizer, question.model.config)
    parts: list[NDArray[np.float64]] = []
    order: list[NDArray[np.int64]] = []
    for indices, n_tokens in batches_by_length(examples, question.batch_size, question.max_length):
        inputs = collate(examples, indices, n_tokens, question.device)
        parts.append(question.model(**inputs.forward).logits.double().cpu().numpy())
        order.append(indices)
        question.on_progress(sum(map(len, order)))
    shuffled = np.concatenate(parts)
    outputs = np.empty_like(shuffled)
    outputs[np.concatenate(order)] = shuffled
    if not np.isfinite(outputs).all():
        raise ArtifactError("a trained model's outputs must be finite, but some are not; was this adapter trained?")
    return outputs


def _check_read(ids: Sequence[Sequence[int]], table: pd.DataFrame) -> None:
    for row, tokens in zip(table.index, ids, strict=True):
        if not tokens:
            raise DataError(
                f"every text must become tokens, but that of row {row + 1} (counted from 1) of split "
                f"{table.index.name!r} becomes none; drop the row, or take a tokenizer that knows its characters"
            )


def _tokenize(tokenizer: Any, texts: list[str], pairs: list[str] | None, **settings: Any) -> dict[str, Any]:
    both = (texts,) if pairs is None else (texts, pairs)
    # verbose=False: texts over the model's limit are expected here, and cut right after.
    return dict(tokenizer(*both, return_attention_mask=False, verbose=False, **settings))
