"""What a trained design writes when it is asked: greedy continuations of held-out examples, for people to read."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from autopeft.errors import ModelError
from autopeft.models.attach import Attached
from autopeft.models.padding import pad_token_id
from autopeft.spec.messages import first_line
from autopeft.spec.training import Training
from autopeft.spec.trial import Sample
from autopeft.spec.writing import n_new_tokens
from autopeft.tasks.base import WritingPrompt
from autopeft.tasks.independence import takes_left_padding
from autopeft.tasks.step import autocast


def write_samples(
    attached: Attached,
    prompts: Sequence[WritingPrompt],
    tokenizer: Any,
    training: Training,
    should_stop: Callable[[], bool],
) -> tuple[Sample, ...]:
    """Return greedy continuations of prompts, and what the data has there, as texts; none where `should_stop` said so.

    Both are cut after the same number of tokens, with an ellipsis.

    Args:
        attached: The trained design on its base, a language model.
        prompts: What to go on from; their ends are kept where the model takes no more.
        tokenizer: Of the base model.
        training: Gives the precision.
        should_stop: Asked before each token.
    """
    from transformers import StoppingCriteriaList

    model, device = attached.model, attached.base.device
    ends = end_tokens(model, tokenizer)
    longest = attached.base.summary.n_positions
    n_new = n_new_tokens(longest)
    n_before = sum(block.n_input_tokens for block in attached.design.blocks)
    asked = [
        prompt.prompt if longest is None else prompt.prompt[-max(1, longest - n_new - n_before) :] for prompt in prompts
    ]
    stopped = False

    def ask_to_stop(input_ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        nonlocal stopped
        stopped = stopped or should_stop()
        return torch.full((len(input_ids),), stopped, device=input_ids.device)

    model.eval()
    criteria = StoppingCriteriaList([ask_to_stop])
    with torch.inference_mode(), autocast(training, device):
        answers = go_on(model, asked, tokenizer, n_new=n_new, device=device, stopping_criteria=criteria)
    if stopped:
        return ()
    return tuple(
        Sample(
            prompt=_text(prompt.prompt.tolist(), tokenizer),
            output=_cut(answer, n_new, ends, tokenizer),
            reference=_cut(prompt.reference.tolist(), n_new, ends, tokenizer),
        )
        for prompt, answer in zip(prompts, answers, strict=True)
    )


def go_on(
    model: Any,
    prompts: Sequence[NDArray[np.int32]],
    tokenizer: Any,
    *,
    n_new: int,
    device: torch.device,
    batch_size: int | None = None,
    stopping_criteria: Any = None,
    on_progress: Callable[[int], None] = lambda _: None,
) -> list[list[int]]:
    """Return the tokens that a language model writes after each prompt, greedily, up to an end token.

    Prompts of about the same length go together, padded on the left; where the model would show that, those of the
    same length only.

    Args:
        model: In evaluation mode.
        prompts: Token ids; an empty one is read as the token that batches are filled with.
        tokenizer: Of the base model.
        n_new: Tokens at most; room for them after the longest prompt is the caller's to leave.
        device: Of the model.
        batch_size: Prompts at a time; all by default.
        stopping_criteria: As transformers takes it.
        on_progress: Called after each batch, with how many prompts are done.
    """
    ends, padding = end_tokens(model, tokenizer), pad_token_id(tokenizer)
    assert padding is not None  # the data was prepared with it
    asked = [prompt if len(prompt) else np.array([padding], dtype=np.int32) for prompt in prompts]

    def generate(batch: Sequence[NDArray[np.int32]], config: Any, criteria: Any = None) -> Any:
        inputs = {name: torch.from_numpy(array).to(device) for name, array in _left_padded(batch, padding).items()}
        return model.generate(**inputs, generation_config=config, stopping_criteria=criteria)

    def first_logits(batch: Sequence[NDArray[np.int32]]) -> tuple[torch.Tensor, ...]:
        config = _greedy(2, [], padding, output_logits=True, return_dict_in_generate=True, use_cache=caches)
        logits: tuple[torch.Tensor, ...] = generate(batch, config).logits
        return logits

    lengths = [len(prompt) for prompt in asked]
    caches = True
    if _failure(first_logits, asked[:1]) is not None:
        caches = False
        if (failure := _failure(first_logits, asked[:1])) is not None:
            raise ModelError(
                f"a language model must write, but transformers does not let {type(model).__name__}: {failure}; take "
                "another model, or another transformers"
            )
    mixed = len(set(lengths)) > 1 and takes_left_padding(asked, first_logits)
    answers: list[list[int]] = [[] for _ in asked]
    n_done = 0
    for batch in writing_batches(lengths, batch_size or len(asked), mixed=mixed):
        config = _greedy(n_new, ends, padding, use_cache=caches)
        written = generate([asked[row] for row in batch], config, stopping_criteria)
        for row, answer in zip(batch, written[:, lengths[batch[0]] :].tolist(), strict=True):
            end = next((at for at, token in enumerate(answer) if token in ends), len(answer))
            answers[row] = answer[: end + 1]  # what follows fills the row up to the longest answer of the batch
        n_done += len(batch)
        on_progress(n_done)
    return answers


def _failure(
    write: Callable[[Sequence[NDArray[np.int32]]], object], prompts: Sequence[NDArray[np.int32]]
) -> str | None:
    """Return why a model does not write after some prompts; None where it does."""
    try:
        write(prompts)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, IndexError, AttributeError, TypeError, AssertionError) as error:  # in its own way
        return f"{type(error).__name__} {first_line(error)}".strip()
    return None


def writing_batches(lengths: Sequence[int], batch_size: int, *, mixed: bool) -> Iterator[list[int]]:
    """Yield the rows of each batch, the longest first; of one length only, unless lengths may be mixed."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    for _, group in groupby(order, key=lambda row: 0 if mixed else lengths[row]):
        rows = list(group)
        yield from (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))


def _greedy(n_new: int, ends: list[int], padding: int, **more: Any) -> Any:
    """Return settings under which every token is the most likely one, whatever the model's own settings are."""
    from transformers import GenerationConfig

    return GenerationConfig(
        max_new_tokens=n_new,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        eos_token_id=ends or None,
        pad_token_id=padding,
        **more,
    )


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Return the tokens that end an answer: the tokenizer's, and those that the model says (a chat's end of turn)."""
    declared = getattr(model.generation_config, "eos_token_id", None)
    declared = declared if isinstance(declared, list | tuple) else [declared]
    return [end for end in dict.fromkeys([tokenizer.eos_token_id, *declared]) if end is not None]


def _left_padded(prompts: Sequence[NDArray[np.int32]], padding: int) -> dict[str, NDArray[np.int64]]:
    """Return ids and mask with every prompt at the right edge, where its continuation begins."""
    longest = max(map(len, prompts))
    ids = np.full((len(prompts), longest), padding, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    return {"input_ids": ids, "attention_mask": mask}


def _cut(ids: list[int], n_tokens: int, ends: list[int], tokenizer: Any) -> str:
    """Return the text up to its end, or up to a number of tokens."""
    stop = next((at for at, token in enumerate(ids) if token in ends), None)
    if stop is None and len(ids) < n_tokens:
        stop = len(ids)
    if stop is not None and stop <= n_tokens:
        return _text(ids[:stop], tokenizer)
    return _text(ids[:n_tokens], tokenizer) + " …"


def _text(ids: list[int], tokenizer: Any) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
