"""Token sequences for a language model, with the tokens that are to be predicted, from the three forms of data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autopeft.errors import DataError
from autopeft.models.losses import IGNORED
from autopeft.spec.messages import first_line
from autopeft.tasks.conversations import Turn

Ints = NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, eq=False)
class TargetSequence:
    """Tokens of one example.

    Attributes:
        labels: The token itself where it is to be predicted from those before it, else `IGNORED`; the first has
            none before it.
    """

    ids: Ints
    labels: Ints

    @classmethod
    def of(cls, ids: Sequence[int], is_target: NDArray[np.bool_]) -> "TargetSequence":
        """Return a sequence whose targets are where the mask says."""
        tokens = np.asarray(ids, dtype=np.int32)
        labels = np.where(is_target, tokens, np.int32(IGNORED))
        labels[:1] = IGNORED
        return cls(ids=tokens, labels=labels)

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self.ids)

    def cut(self, start: int, stop: int, *, keep_first: bool = False) -> "TargetSequence":
        """Return a stretch, after the sequence's first token where that is to stay."""
        chosen = np.r_[0, start + 1 : stop] if keep_first and start > 0 else np.arange(start, min(stop, len(self)))
        return TargetSequence.of(self.ids[chosen].tolist(), self.labels[chosen] != IGNORED)


def from_texts(texts: Sequence[str], tokenizer: Any) -> list[TargetSequence]:
    """Return plain texts, each token a target, with the end token."""
    sequences = [[*ids, *_end(ids, tokenizer)] for ids in _tokenize(tokenizer, texts, special=True)]
    return [TargetSequence.of(ids, np.ones(len(ids), dtype=np.bool_)) for ids in sequences]


def from_completions(prompts: Sequence[str], completions: Sequence[str], tokenizer: Any) -> list[TargetSequence]:
    """Return prompts with their completions, whose tokens and end token are the targets.

    The two are tokenized apart, as they are when a model is given the prompt and goes on from it.
    """
    sequences = []
    before = _tokenize(tokenizer, prompts, special=True)
    after = _tokenize(tokenizer, completions, special=False)
    for prompt, completion in zip(before, after, strict=True):
        prompt = _open_end(prompt, tokenizer)
        completion = [*completion, *_end(completion, tokenizer)]
        is_target = np.arange(len(prompt) + len(completion)) >= len(prompt)
        sequences.append(TargetSequence.of([*prompt, *completion], is_target))
    return sequences


def from_conversations(table: pd.DataFrame, tokenizer: Any) -> list[TargetSequence]:
    """Return conversations as the tokenizer's chat template writes them; every assistant's turn is a target.

    A turn is what the template adds to the conversation up to it, its end mark included.

    Raises:
        DataError: There is no template, it refuses a conversation, or it writes earlier turns differently once
            a later one is there.
    """
    _check_template(tokenizer)
    return [_from_turns(turns, tokenizer, place) for place, turns in _conversations(table)]


def prompts_of(table: pd.DataFrame, tokenizer: Any) -> list[Ints]:
    """Return what a model is to go on from: a prompt or text, or a conversation up to the assistant's last turn.

    They are tokenized as `from_completions` and `from_conversations` tokenize what stands before a target.

    Raises:
        DataError: As `from_conversations`.
    """
    if "messages" in table:
        _check_template(tokenizer)
        asked = [
            (place, turns[:-1] if turns[-1]["role"] == "assistant" else turns) for place, turns in _conversations(table)
        ]
        prompts = [_render(turns, tokenizer, place, add_generation_prompt=True) for place, turns in asked]
    else:
        texts = table["prompt" if "prompt" in table else "text"].tolist()
        prompts = [_open_end(prompt, tokenizer) for prompt in _tokenize(tokenizer, texts, special=True)]
    return [np.asarray(prompt, dtype=np.int32) for prompt in prompts]


def _conversations(table: pd.DataFrame) -> list[tuple[str, list[Turn]]]:
    """Return each conversation with its place, for messages."""
    places = [f"row {row + 1} (counted from 1) of split {table.index.name!r}" for row in table.index]
    return list(zip(places, table["messages"], strict=True))


def _check_template(tokenizer: Any) -> None:
    if not tokenizer.chat_template:
        raise DataError(
            "columns.messages needs a tokenizer with a chat template, but this one has none; take an instruction-tuned "
            "model, save a chat_template.jinja beside the tokenizer, or give columns.prompt and columns.completion"
        )


def _from_turns(turns: list[Turn], tokenizer: Any, place: str) -> TargetSequence:
    ids = _render(turns, tokenizer, place)
    is_target = np.zeros(len(ids), dtype=np.bool_)
    for number, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        before = _render(turns[:number], tokenizer, place, add_generation_prompt=True)
        after = _render(turns[: number + 1], tokenizer, place) if number + 1 < len(turns) else ids
        if after[: len(before)] != before or ids[: len(after)] != after or len(after) == len(before):
            raise DataError(
                f"a chat template must write a conversation so that it begins with its own earlier turns, but this "
                f"tokenizer's does not at turn {number + 1} of {place}, so that what the assistant says cannot be told "
                f"apart; give each conversation one assistant's turn, at its end, or columns.prompt and "
                f"columns.completion"
            )
        is_target[len(before) : len(after)] = True
    return TargetSequence.of(ids, is_target)


def check_targets(sequences: Sequence[TargetSequence], table: pd.DataFrame) -> None:
    """Raise `DataError` where nothing of an example is to be predicted."""
    for row, sequence in zip(table.index, sequences, strict=True):
        if not (sequence.labels != IGNORED).any():
            raise DataError(
                f"every row must have a token to predict from those before it, but row {row + 1} (counted from 1) of "
                f"split {table.index.name!r} becomes {len(sequence)} tokens without one; drop the row"
            )


def _render(turns: list[Turn], tokenizer: Any, place: str, **settings: Any) -> list[int]:
    try:
        encoded = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True, **settings)
    except Exception as error:  # templates raise what they like
        raise DataError(
            f"the chat template must take every conversation, but it refuses {place}: {first_line(error)}; change the "
            f"conversation, or drop the row"
        ) from None
    return list(encoded["input_ids"])


def pieces(sequence: TargetSequence, max_length: int) -> list[TargetSequence]:
    """Cut a plain text into examples that fit; each begins with the last token of the one before, to predict from."""
    starts = range(0, max(1, len(sequence) - 1), max_length - 1)
    return [sequence.cut(start, start + max_length) for start in starts]


def shorten(sequence: TargetSequence, max_length: int, *, begin: int | None) -> TargetSequence:
    """Return what fits of a sequence: the last stretch of targets, and as much of what stands before as there is room.

    Where that stretch alone does not fit, it is cut at its end, and what stands before it keeps half of the room.

    Args:
        sequence: With at least one target.
        max_length: In tokens, at least 2.
        begin: The token that every sequence begins with, which stays at the front; None where there is none.
    """
    if len(sequence) <= max_length:
        return sequence
    start, stop = last_targets(sequence.labels)
    first = max(0, stop - max_length)
    if first >= start:
        first = max(0, start - max_length // 2)
    return sequence.cut(first, first + max_length, keep_first=begin is not None and sequence.ids[0] == begin)


def last_targets(labels: NDArray[Any]) -> tuple[int, int]:
    """Return where the last unbroken stretch of targets starts and stops."""
    positions = np.flatnonzero(labels != IGNORED)
    breaks = np.flatnonzero(np.diff(positions) > 1)
    return int(positions[breaks[-1] + 1 if len(breaks) else 0]), int(positions[-1]) + 1


def _open_end(prompt: list[int], tokenizer: Any) -> list[int]:
    """Return a prompt without the end token that some tokenizers put behind every text: here it goes on."""
    return prompt[:-1] if len(prompt) > 1 and prompt[-1] == tokenizer.eos_token_id else prompt


def _end(ids: Sequence[int], tokenizer: Any) -> list[int]:
    end = tokenizer.eos_token_id
    if end is None:
        raise DataError(
            "a language model's tokenizer must have an end token, so that it learns where texts end, but this one has "
            "none; set eos_token in its tokenizer_config.json"
        )
    return [] if ids and ids[-1] == end else [end]


def _tokenize(tokenizer: Any, texts: Sequence[str], *, special: bool) -> list[list[int]]:
    # verbose=False: texts over the model's limit are expected here, and cut right after.
    encoded = tokenizer(list(texts), add_special_tokens=special, return_attention_mask=False, verbose=False)
    ids: list[list[int]] = encoded["input_ids"]
    return ids
