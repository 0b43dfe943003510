"""Prediction with a language model: what it writes after each row, in the rows' order."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from click.testing import CliRunner

import autopeft
from autopeft.cli import main
from autopeft.errors import DataError
from tests.tasks.generated_language import save_tiny_llama, sentences, write_csv

RATE = 0.02


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an exported hybrid on a tiny Llama, trained on prompts (in `question`) and completions."""
    folder = tmp_path_factory.mktemp("language")
    rows = sentences(200).rename(columns={"prompt": "question", "completion": "answer"})
    result = autopeft.search(
        model=save_tiny_llama(folder / "llama"),
        data=write_csv(rows, folder / "fruit.csv"),
        task="causal-lm",
        columns={"prompt": "question", "completion": "answer"},
        splits={"train": 120, "validation": 30, "test": 30},
        space={
            "blocks": {
                "lora": {"rank": 4, "roles": "all", "learning_rate": RATE},
                "prefix": {"length": 3, "learning_rate": RATE},
            }
        },
        training={"epochs": 3, "batch_size": 16, "precision": "fp32", "kernel": "sdpa", "max_length": 60},
        n_trials=1,
        early_stopping="off",
        output_dir=str(folder / "runs"),
    )
    assert isinstance(result, autopeft.SearchResult)
    hybrid = max(result.state.trials, key=lambda trial: len(trial.design.blocks))
    return result.export(hybrid, folder / "adapter")


def write_one(model: Any, tokenizer: Any, prompt: list[int], n_new: int) -> str:
    """Return what the model writes, token by token, without a cache and without padding."""
    ids = torch.tensor([prompt])
    for _ in range(n_new):
        with torch.no_grad():
            token = int(model(input_ids=ids, use_cache=False).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    return str(tokenizer.decode(ids[0, len(prompt) :], skip_special_tokens=True)).strip()


def test_batches_write_what_single_prompts_do(adapter: Path) -> None:
    rows = sentences(12, seed=5)[["prompt", "source"]].rename(columns={"prompt": "question"})
    answer = autopeft.predict(adapter, rows, batch_size=5, max_new_tokens=8)
    assert list(answer) == ["question", "source", "prediction"]
    pd.testing.assert_frame_equal(answer[["question", "source"]], rows)
    model, tokenizer = autopeft.load(adapter)
    expected = [write_one(model, tokenizer, tokenizer(text)["input_ids"], 8) for text in rows["question"]]
    assert list(answer["prediction"]) == expected
    assert len(set(expected)) > 1


def test_a_conversation_is_answered_and_a_text_goes_on(adapter: Path) -> None:
    turns = [
        {"role": "user", "content": "The colours of plum number 3 are"},
        {"role": "assistant", "content": "blue"},
        {"role": "user", "content": "And the first?"},
    ]
    open_end, answered = [turns, [*turns, {"role": "assistant", "content": "blue"}]]
    chats = pd.DataFrame({"messages": [open_end, answered]})
    written = autopeft.predict(adapter, chats, max_new_tokens=6)["prediction"]
    assert written[0] == written[1]  # the last answer is what is asked for
    model, tokenizer = autopeft.load(adapter)
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert written[0] == write_one(model, tokenizer, prompt, 6)
    text = pd.DataFrame({"text": ["The colours of plum number 3 are"]})
    (going_on,) = autopeft.predict((model, tokenizer), text, max_new_tokens=6)["prediction"]
    assert going_on == write_one(model, tokenizer, tokenizer(text["text"][0])["input_ids"], 6)


def test_a_long_prompt_keeps_its_end(adapter: Path) -> None:
    long = pd.DataFrame({"prompt": ["apple " * 90 + "number 3 are", "number 3 are"]})
    with pytest.warns(UserWarning, match="1 of 2 inputs were truncated to 60 tokens"):
        written = autopeft.predict(adapter, long, max_new_tokens=5)["prediction"]
    model, tokenizer = autopeft.load(adapter)
    ids = tokenizer(long["prompt"][0])["input_ids"]
    assert written[0] == write_one(model, tokenizer, ids[-60:], 5)


def test_the_command_writes_completions(adapter: Path, tmp_path: Path) -> None:
    data = write_csv(sentences(4, seed=5), tmp_path / "new.csv")
    arguments = [
        "predict",
        str(adapter),
        "--data",
        data,
        "--max-new-tokens",
        "4",
        "--output",
        str(tmp_path / "o.jsonl"),
    ]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [list(row) for row in rows] == [["prompt", "completion", "source", "prediction"]] * 4


def test_a_model_without_room_says_so(adapter: Path) -> None:
    with pytest.raises(DataError, match="max_new_tokens=200, positions=160"):
        autopeft.predict(adapter, pd.DataFrame({"prompt": ["number 3 are"]}), max_new_tokens=200)
