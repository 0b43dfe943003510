"""A model that shows a row's padding is refused before anything is trained."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from autopeft.errors import ModelError
from autopeft.spec.training import Splits, Training
from autopeft.tasks.base import PreparedData
from autopeft.tasks.independence import check_rows, takes_left_padding
from autopeft.tasks.prepare import prepare
from autopeft.tasks.writing import go_on, writing_batches
from autopeft.training.device import choose_training
from tests.architectures.tiny import make_rows, make_tokenizer, save_model

TASK = "text-classification"
TRAINING = Training(precision="fp32", kernel="eager", device="cpu", batch_size=8)


def prepared(folder: str, task: str = TASK) -> PreparedData:
    rows = [row if task == TASK else {"text": row["text"]} for row in make_rows()]
    data: Any = {name: [row[name] for row in rows] for name in rows[0]}
    import pandas as pd

    splits = Splits(train=16, validation=4, test=4)
    return prepare(pd.DataFrame(data), model=folder, task=task, splits=splits, training=TRAINING)


def test_a_model_that_reads_its_padding_is_refused_before_training(tmp_path: Path) -> None:
    """ConvBERT's convolutions see what is behind the text; with weights so large that it shows, as trained ones are."""
    folder = save_model(TASK, "convbert", tmp_path)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    for parameter in model.parameters():
        parameter.data.mul_(3 if parameter.dim() > 1 else 1)
    model.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"must not depend on the rows beside it, but .* take another model"):
        choose_training(folder, TRAINING, prepared(folder))


@pytest.mark.parametrize("name", ["roberta", "gpt2"])
def test_others_are_not(tmp_path: Path, name: str) -> None:
    folder = save_model(TASK, name, tmp_path)
    assert choose_training(folder, TRAINING, prepared(folder)).training == TRAINING


def test_a_wrong_padding_token_would_be_seen(tmp_path: Path) -> None:
    data = prepared(save_model(TASK, "llama", tmp_path))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=2)
    check_rows(model, data, torch.device("cpu"))
    model.config.pad_token_id = 90
    with pytest.raises(ModelError, match="reads the padding"):
        check_rows(model, data, torch.device("cpu"))


def test_prompts_of_one_length_go_together_where_left_padding_shows(tmp_path: Path) -> None:
    """A GPT-2 that never gets its positions counts those of the padding too."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, n_positions=64, vocab_size=96, bos_token_id=2, eos_token_id=None
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    for parameter in model.parameters():
        parameter.data.mul_(5)
    prompts = [np.arange(length, dtype=np.int32) + 5 for length in (3, 20, 3, 9)]
    tokenizer, device = make_tokenizer(), torch.device("cpu")

    def write(batch_size: int) -> list[list[int]]:
        return go_on(model, prompts, tokenizer, n_new=6, device=device, batch_size=batch_size)

    right = write(1)
    assert write(4) == right
    model.prepare_inputs_for_generation = _without_positions(model)
    sizes: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda _m, _a, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    assert write(4) == right
    handle.remove()
    assert set(sizes[4:]) == {1, 2}  # after the check: only the two of one length go together


def _without_positions(model: Any) -> Any:
    prepare_inputs = model.prepare_inputs_for_generation

    def prepare_without(*args: Any, **kwargs: Any) -> Any:
        return {name: value for name, value in prepare_inputs(*args, **kwargs).items() if name != "position_ids"}

    return prepare_without


def test_left_padding_is_judged_by_logits() -> None:
    prompts = [np.arange(4, dtype=np.int32), np.arange(90, dtype=np.int32)]
    asked: list[list[int]] = []

    def write(batch: Any, error: float = 0.0) -> tuple[torch.Tensor, ...]:
        asked.append([len(prompt) for prompt in batch])
        return tuple(torch.ones(len(batch), 5) + error * (len(batch) - 1) for _ in range(2))

    assert takes_left_padding(prompts, write)
    assert asked == [[4], [4, 28]]
    assert takes_left_padding(prompts, lambda batch: write(batch, 1e-4))
    assert not takes_left_padding(prompts, lambda batch: write(batch, 1e-2))


def test_batches_hold_every_row_once() -> None:
    lengths = [3, 9, 3, 1, 9, 3]
    assert list(writing_batches(lengths, 4, mixed=True)) == [[1, 4, 0, 2], [5, 3]]
    assert list(writing_batches(lengths, 2, mixed=False)) == [[1, 4], [0, 2], [5], [3]]


def test_an_empty_prompt_is_read_as_padding(tmp_path: Path) -> None:
    save_model("causal-lm", "llama", tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    empty: NDArray[np.int32] = np.array([], dtype=np.int32)
    both = go_on(model, [empty, np.arange(9, dtype=np.int32)], make_tokenizer(), n_new=4, device=torch.device("cpu"))
    alone = go_on(model, [empty], make_tokenizer(), n_new=4, device=torch.device("cpu"))
    assert both[0] == alone[0]
