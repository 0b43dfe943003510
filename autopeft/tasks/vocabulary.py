"""Whether a model can read what a tokenizer writes: tokens in its embedding table, segments, words that are known."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autopeft.errors import ModelError
from autopeft.tasks.examples import Examples, Ragged

MAX_UNKNOWN = 1 / 3
"""Share of unknown tokens from which on data is refused: its tokenizer was made for something else."""
MIN_NOTED = 0.01
"""Share of unknown tokens from which on people are told."""
RELATIVE_SEGMENTS = ("xlnet",)
"""Types of models that know segments without a table of them."""


def fit(split: Examples, tokenizer: Any, config: Any) -> Examples:
    """Return a split as the model takes it: without segments where it has none.

    Tokens beyond the model's table are fine as long as no example has them, and nothing is padded with them.

    Args:
        split: What the tokenizer made.
        tokenizer: For its size and names.
        config: Of the model, from transformers.

    Raises:
        ModelError: A token or a segment lies beyond the model's table.
    """
    for name, column in split.inputs.items():
        if name.endswith("input_ids") and isinstance(column, Ragged):
            check_tokens(column.values, tokenizer, config)
    segments = split.inputs.get("token_type_ids")
    if not isinstance(segments, Ragged):
        return split
    n_segments = getattr(config.get_text_config(), "type_vocab_size", None)
    if not n_segments:
        has_segments = config.model_type in RELATIVE_SEGMENTS
        without = {name: column for name, column in split.inputs.items() if name != "token_type_ids"}
        return split if has_segments else replace(split, inputs=without)
    last = int(segments.values.max(initial=0))
    if last >= n_segments:
        raise ModelError(
            f"segment < type_vocab_size of the model must hold, but the tokenizer ({type(tokenizer).__name__}) writes "
            f"segment {last}, and type_vocab_size={n_segments}; save the model's own tokenizer beside it"
        )
    return split


def check_tokens(tokens: NDArray[Any], tokenizer: Any, config: Any) -> None:
    """Raise `ModelError` where one of the tokens lies beyond the model's embedding table."""
    n_rows, last = getattr(config.get_text_config(), "vocab_size", None), int(tokens.max(initial=0))
    if n_rows is None or last < n_rows:
        return
    raise ModelError(
        f"every token must have a row in the model's embedding table, but the tokenizer has {len(tokenizer)} tokens "
        f"and the table {n_rows} rows: {tokenizer.convert_ids_to_tokens(last)!r} is token {last}; call "
        f"model.resize_token_embeddings({len(tokenizer)}) and save the model, or save the model's own tokenizer beside "
        f"it"
    )


def unknown_tokens(splits: Sequence[Examples], tokenizer: Any) -> list[str]:
    """Return a note where some tokens are unknown words; those that the tokenizer puts around texts do not count.

    Raises:
        ModelError: More than `MAX_UNKNOWN` of them are.
    """
    unknown = tokenizer.unk_token_id
    others = [token for name, token in tokenizer.special_tokens_map.items() if name != "unk_token"]
    around = set(tokenizer.convert_tokens_to_ids([token for token in others if isinstance(token, str)]))
    if unknown is None or unknown in around:  # a byte-level tokenizer knows all, and names some token
        return []
    columns = [split.inputs["input_ids"] for split in splits]
    tokens = np.concatenate([column.values for column in columns if isinstance(column, Ragged)])
    n_words = int((~np.isin(tokens, list(around))).sum())
    share = int((tokens == unknown).sum()) / max(1, n_words)
    if share < MIN_NOTED:
        return []
    found = f"{share:.1%} of the tokens of the data are {tokenizer.unk_token}, the tokenizer's unknown word"
    if share > MAX_UNKNOWN:
        raise ModelError(
            f"at most {MAX_UNKNOWN:.0%} of the tokens may be unknown, but {found}: it was made for other texts, or for "
            f"another model; save the model's own tokenizer beside it, or take a model for this language"
        )
    return [found]
