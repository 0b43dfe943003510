"""What a trained design writes when it is asked: greedy continuations of held-out examples, for people to read."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from autopeft.models.attach import Attached
from autopeft.spec.training import Training
from autopeft.spec.trial import Sample
from autopeft.spec.writing import n_new_tokens
from autopeft.tasks.base import WritingPrompt
from autopeft.training.evaluate import autocast


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
    asked = [prompt.prompt if longest is None else prompt.prompt[-(longest - n_new) :] for prompt in prompts]
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
    stopping_criteria: Any = None,
) -> list[list[int]]:
    """Return the tokens that a language model writes after each prompt, greedily: an end token among them, or not.

    Args:
        model: In evaluation mode.
        prompts: Token ids; all of them are one batch.
        tokenizer: Of the base model.
        n_new: Tokens at most; room for them after the longest prompt is the caller's to leave.
        device: Of the model.
        stopping_criteria: As transformers takes it.
    """
    ends = end_tokens(model, tokenizer)
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    inputs = {name: torch.from_numpy(array).to(device) for name, array in _left_padded(prompts, padding).items()}
    written = model.generate(
        **inputs, generation_config=_greedy(n_new, ends, padding), stopping_criteria=stopping_criteria
    )
    answers: list[list[int]] = written[:, inputs["input_ids"].shape[1] :].tolist()
    return answers


def _greedy(n_new: int, ends: list[int], padding: int) -> Any:
    """Return settings under which every token is the most likely one, whatever the model's own settings are."""
    from transformers import GenerationConfig

    return GenerationConfig(
        max_new_tokens=n_new,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        use_cache=True,
        eos_token_id=ends or None,
        pad_token_id=padding,
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
