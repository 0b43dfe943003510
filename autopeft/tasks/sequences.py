"""Token sequences for a language model, with the tokens that are to be predicted, from the three forms of data."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autopeft.errors import DataError
from autopeft.models.losses import IGNORED
from autopeft.tasks.chat import ChatTemplate, ChatText, Conversation
from autopeft.tasks.conversations import read_tools

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
    sequences = [[*ids, *_end(ids, tokenizer)] for ids in _tokenize(tokenizer, texts)]
    return [TargetSequence.of(ids, np.ones(len(ids), dtype=np.bool_)) for ids in sequences]


def from_completions(prompts: Sequence[str], completions: Sequence[str], tokenizer: Any) -> list[TargetSequence]:
    """Return prompts with their completions, whose tokens and end token are the targets.

    Each is tokenized as one text. Where a token would span the end of the prompt, the two are tokenized apart, as
    they are when a model is given the prompt and goes on from it.
    """
    sequences = []
    wholes = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    before, all_ids = _tokenize(tokenizer, prompts), _tokenize(tokenizer, wholes)
    for prompt, ids, completion in zip(before, all_ids, completions, strict=True):
        prompt, ids = _open_end(prompt, tokenizer), _open_end(ids, tokenizer)
        if ids[: len(prompt)] != prompt or len(ids) == len(prompt):
            ids = [*prompt, *_tokenize_inner(tokenizer, completion)]
        ids = [*ids, *_end(ids, tokenizer)]
        sequences.append(TargetSequence.of(ids, np.arange(len(ids)) >= len(prompt)))
    return sequences


def from_conversations(table: pd.DataFrame, tokenizer: Any) -> list[TargetSequence]:
    """Return conversations as the tokenizer's chat template writes them; see `autopeft.tasks.chat.ChatTemplate.write`.

    Raises:
        DataError: There is no template, or it cannot be used with a conversation.
    """
    template = ChatTemplate(tokenizer)
    return [_from_chat(template.write(conversation), tokenizer) for conversation in _conversations(table)]


def prompts_of(table: pd.DataFrame, tokenizer: Any) -> list[Ints]:
    """Return what a model is to go on from: a prompt or text, or a conversation up to the assistant's last turn.

    They are tokenized as `from_completions` and `from_conversations` tokenize what stands before a target.

    Raises:
        DataError: As `from_conversations`.
    """
    if "messages" in table:
        template = ChatTemplate(tokenizer)
        texts = [template.prompt(_unanswered(conversation)) for conversation in _conversations(table)]
        prompts = [_encode(tokenizer, text) for text in texts]
    else:
        texts = table["prompt" if "prompt" in table else "text"].tolist()
        prompts = [_open_end(prompt, tokenizer) for prompt in _tokenize(tokenizer, texts)]
    return [np.asarray(prompt, dtype=np.int32) for prompt in prompts]


def _conversations(table: pd.DataFrame) -> list[Conversation]:
    """Return each conversation with its place, for messages."""
    places = [f"row {row + 1} (counted from 1) of split {table.index.name!r}" for row in table.index]
    tools = table["tools"] if "tools" in table else [None] * len(table)
    return [
        Conversation(turns=turns, tools=read_tools(offered, place=f"tools in {place}"), place=place)
        for turns, offered, place in zip(table["messages"], tools, places, strict=True)
    ]


def _unanswered(conversation: Conversation) -> Conversation:
    turns = conversation.turns
    return replace(conversation, turns=turns[:-1] if turns[-1]["role"] == "assistant" else turns)


def _from_chat(chat: ChatText, tokenizer: Any) -> TargetSequence:
    """Return the tokens of a conversation, of which exactly those of what the assistant says are targets."""
    ids, places = tokens_at(chat.text, [place for span in chat.targets for place in span], tokenizer)
    is_target = np.zeros(len(ids), dtype=np.bool_)
    for start, stop in zip(places[::2], places[1::2], strict=True):
        is_target[start:stop] = True
    return TargetSequence.of(ids, is_target)


def tokens_at(text: str, cuts: Sequence[int], tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the tokens of a text, and how many of them stand before each cut.

    The text is tokenized as a whole. Where a token would span a cut, what follows is tokenized apart: a model that
    is to go on from there is given the tokens of what stands before.

    Args:
        text: Such as a conversation, with every special token that it is to have.
        cuts: Positions of characters, in order.
        tokenizer: Fast or slow.
    """
    done: list[int] = []
    start, rest, n_before = 0, _encode(tokenizer, text), []
    for cut in cuts:
        piece = text[start:cut]
        before = _tokenize_inner(tokenizer, piece) if start else _encode(tokenizer, piece)
        if rest[: len(before)] != before:
            done, start, rest = [*done, *before], cut, _tokenize_inner(tokenizer, text[cut:])
            before = []
        n_before.append(len(done) + len(before))
    return [*done, *rest], n_before


def check_targets(sequences: Sequence[TargetSequence], table: pd.DataFrame) -> None:
    """Raise `DataError` where nothing of an example is to be predicted."""
    for row, sequence in zip(table.index, sequences, strict=True):
        if not (sequence.labels != IGNORED).any():
            raise DataError(
                f"every row must have a token to predict from those before it, but row {row + 1} (counted from 1) of "
                f"split {table.index.name!r} becomes {len(sequence)} tokens without one; drop the row"
            )


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


def _tokenize(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return texts with the special tokens of the tokenizer; one that a text begins with itself is not doubled."""
    # verbose=False: texts over the model's limit are expected here, and cut right after.
    ids: list[list[int]] = tokenizer(list(texts), return_attention_mask=False, verbose=False)["input_ids"]
    begin = tokenizer.bos_token_id
    return [each[1:] if begin is not None and each[:2] == [begin, begin] else each for each in ids]


def _encode(tokenizer: Any, text: str) -> list[int]:
    """Return a text without special tokens but those that it holds."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return ids


def _tokenize_inner(tokenizer: Any, text: str) -> list[int]:
    """Return text from the middle of another: without the blank that some tokenizers put before every text.

    Source: transformers, `_encode_chat_piece` in utils/chat_template_utils.py.
    """
    line_end, ids = _encode(tokenizer, "\n"), _encode(tokenizer, f"\n{text}")
    return ids[len(line_end) :] if ids[: len(line_end)] == line_end else _encode(tokenizer, text)
