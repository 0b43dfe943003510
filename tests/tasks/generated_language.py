"""Generated text in three forms, and a tiny Llama with a tokenizer and a chat template: learnable in a few steps."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

COLOURS = ["red", "green", "blue", "black", "white"]
FRUITS = ["apple", "pear", "plum", "cherry", "grape"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|end|>", "<|im_start|>", "<|im_end|>"]
N_POSITIONS = 160
FORMS = ("text", "completion", "messages")


def sentences(n_rows: int, *, seed: int = 0, form: str = "completion", n_groups: int = 9) -> pd.DataFrame:
    """Return rows of one form, from 2 to 12 words of an answer; what fruit has what colour is the same in all."""
    generator = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for row in range(n_rows):
        chosen = generator.integers(0, len(FRUITS), size=int(generator.integers(1, 7)))
        prompt = f"The colours of {' '.join(FRUITS[at] for at in chosen)} number {row} are"
        answer = "".join(f" {COLOURS[at]}" for at in chosen)
        values: dict[str, dict[str, Any]] = {
            "text": {"text": prompt + answer},
            "completion": {"prompt": prompt, "completion": answer},
            "messages": {"messages": conversation(prompt, answer.strip(), COLOURS[chosen[0]])},
        }
        rows.append({**values[form], "source": f"source{row % n_groups}"})
    return pd.DataFrame(rows)


def conversation(question: str, answer: str, first: str) -> list[dict[str, str]]:
    """Return a conversation of two questions and two answers."""
    return [
        {"role": "system", "content": "You know fruit."},
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "And the first?"},
        {"role": "assistant", "content": first},
    ]


def save_language_tokenizer(folder: Path, *, template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on generated text, and save it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(200, seed=99, form="text")["text"].tolist(), trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    made.chat_template = template
    made.save_pretrained(folder)
    return made


def save_tiny_llama(folder: Path, *, tied: bool = True, n_layers: int = 2, vocabulary: int = 400) -> str:
    """Save a random Llama of 32 features with its tokenizer; return the folder."""
    save_language_tokenizer(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=N_POSITIONS,
        tie_word_embeddings=tied,
        initializer_range=0.3,  # a frozen output map of small weights could say nothing clearly
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def write_csv(rows: pd.DataFrame, path: Path) -> str:
    """Write rows as csv, with conversations as JSON text."""
    if "messages" in rows:
        rows = rows.assign(messages=rows["messages"].map(json.dumps))
    rows.to_csv(path, index=False)
    return str(path)
