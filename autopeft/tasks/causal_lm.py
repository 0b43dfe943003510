"""Causal language modelling: continue a text, complete a prompt, or answer in a conversation."""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from autopeft.errors import DataError
from autopeft.metrics import TOKEN_METRICS, Metric
from autopeft.models.base import Base
from autopeft.models.losses import IGNORED, token_loss, token_rows
from autopeft.models.padding import pad_token_id
from autopeft.tasks.base import Answer, Encoded, Question, Task, WritingPrompt
from autopeft.tasks.batches import Inputs
from autopeft.tasks.chat import chat_notes
from autopeft.tasks.examples import Examples, Ragged
from autopeft.tasks.inputs import example_inputs, token_ids
from autopeft.tasks.sequences import (
    TargetSequence,
    check_targets,
    from_completions,
    from_conversations,
    from_texts,
    last_targets,
    pieces,
    prompts_of,
    shorten,
)
from autopeft.tasks.vocabulary import check_tokens
from autopeft.tasks.writing import end_tokens, go_on


class CausalLM(Task):
    """The task `causal-lm`; see `autopeft.tasks.base.Task`.

    Only what a model is to write is learned and scored: all of a plain text, the completion of a prompt,
    the assistant's turns of a conversation. The language model's own head is part of the base.
    """

    name: str = "causal-lm"
    metrics: Mapping[str, Metric] = TOKEN_METRICS
    default_metric: str = "perplexity"
    forms: tuple[tuple[str, ...], ...] = (("text",), ("prompt", "completion"), ("messages",))
    optional: tuple[str, ...] = ("tools", "group")
    implied: Mapping[str, tuple[str, ...]] = {"messages": ("tools",)}
    targets: tuple[str, ...] = ("completion",)
    auto_class: str = "AutoModelForCausalLM"
    pipeline_tag: str = "text-generation"

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
            split=_examples(sequences, fill=pad_token_id(tokenizer) or 0),
            n_truncated=0 if is_plain else len(over),
            n_cut=len(over) if is_plain else 0,
            longest=longest,
        )

    def notes(self, tables: Mapping[str, pd.DataFrame], tokenizer: Any, labels: Sequence[str]) -> list[str]:
        """Return what the chat template does with conversations."""
        return chat_notes(tables, tokenizer)

    def example_batch(self, base: Base, *, batch_size: int, n_tokens: int, device: torch.device) -> Inputs:
        """Return inputs with a token to predict at each position; a decoder beside an encoder reads as many tokens."""
        forward = example_inputs(base, batch_size=batch_size, n_tokens=n_tokens, device=device)
        if base.summary.is_encoder_decoder:
            forward["decoder_input_ids"] = token_ids(batch_size, n_tokens, device=device)
        return Inputs(forward=forward, labels=token_ids(batch_size, n_tokens, device=device))

    def loss(self, outputs: Any, labels: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy over the target tokens of a batch."""
        return token_loss(outputs.logits, labels)

    def rows(self, outputs: Any, labels: torch.Tensor) -> torch.Tensor:
        """Return the sum of negative log-likelihood and the number of right tokens of each example."""
        return token_rows(outputs.logits, labels)

    def prompts(self, examples: Examples, n_at_most: int) -> list[WritingPrompt]:
        """Return the first examples of a split with different prompts.

        What is asked for is the last stretch of targets; of a plain text, all but its first third.
        """
        tokens, labels = examples.inputs["input_ids"], examples.labels
        assert isinstance(tokens, Ragged)
        assert isinstance(labels, Ragged)
        found: dict[bytes, WritingPrompt] = {}
        for row in range(len(examples)):
            if len(found) == n_at_most:
                break
            ids = tokens[row]
            first, last = last_targets(labels[row])
            if first <= 1:
                first = max(1, len(ids) // 3)
            prompt = WritingPrompt(prompt=ids[:first], reference=ids[first:last])
            found.setdefault(prompt.prompt.tobytes(), prompt)
        return list(found.values())

    def answer(self, question: Question) -> Answer:
        """Return what the model writes after each prompt, greedily; prompts of about the same length go together."""
        model, tokenizer = question.model, question.tokenizer
        room, ends = _room(question), set(end_tokens(model, tokenizer))
        asked = prompts_of(question.rows, tokenizer)
        check_tokens(np.concatenate(asked), tokenizer, model.config)
        answers = go_on(
            model,
            [_last(prompt, room, begin=tokenizer.bos_token_id) for prompt in asked],
            tokenizer,
            n_new=question.max_new_tokens,
            device=question.device,
            batch_size=question.batch_size,
            on_progress=question.on_progress,
        )
        kept = (list(takewhile(lambda token: token not in ends, answer)) for answer in answers)
        texts = [str(tokenizer.decode(tokens, skip_special_tokens=True)).strip() for tokens in kept]
        return Answer(
            columns=pd.DataFrame({"prediction": texts}),
            n_truncated=sum(len(prompt) > room for prompt in asked),
            n_read=room,
            longest=max(map(len, asked)),
        )


def _sequences(table: pd.DataFrame, tokenizer: Any) -> list[TargetSequence]:
    if "messages" in table:
        return from_conversations(table, tokenizer)
    if "completion" in table:
        return from_completions(table["prompt"].tolist(), table["completion"].tolist(), tokenizer)
    return from_texts(table["text"].tolist(), tokenizer)


def _examples(sequences: Sequence[TargetSequence], *, fill: int) -> Examples:
    tokens = Ragged.of([sequence.ids for sequence in sequences], fill=fill)
    labels = np.concatenate([sequence.labels for sequence in sequences])
    return Examples(inputs={"input_ids": tokens}, labels=Ragged(values=labels, offsets=tokens.offsets, fill=IGNORED))


def _room(question: Question) -> int:
    """Return how long a prompt may be: as in training, and such that the answer has room in the model's positions."""
    n_new, n_before = question.max_new_tokens, question.n_added_tokens
    if n_new < 1:
        raise DataError(f"max_new_tokens >= 1 must hold, but got {n_new}")
    positions = getattr(question.model.config.get_text_config(), "max_position_embeddings", None)
    room = question.max_length if positions is None else min(question.max_length, positions - n_before - n_new)
    if room < 1:
        raise DataError(
            f"max_new_tokens < positions of the model must hold, but got max_new_tokens={n_new}, "
            f"positions={positions}" + (f", of which the adapter's prompt takes {n_before}" if n_before else "")
        )
    return room


def _last(prompt: NDArray[np.int32], n_tokens: int, *, begin: int | None) -> NDArray[np.int32]:
    """Return the end of a prompt, after the token that every sequence begins with, where there is one."""
    if len(prompt) <= n_tokens:
        return prompt
    first = prompt[:1] if begin is not None and prompt[0] == begin and n_tokens > 1 else prompt[:0]
    return np.concatenate([first, prompt[len(prompt) - n_tokens + len(first) :]])


TASK = CausalLM()
