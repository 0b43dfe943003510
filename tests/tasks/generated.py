"""Generated text and a tiny model that reads it: learnable in a few steps, made in milliseconds."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = {"good": [f"good{i}" for i in range(20)], "bad": [f"bad{i}" for i in range(20)]}
NEUTRAL = [f"word{i}" for i in range(60)]
N_POSITIONS = 40


def reviews(n_rows: int, *, seed: int = 0, n_groups: int = 12) -> pd.DataFrame:
    """Return texts of 1 to 36 words, `good` or `bad` by the words in them, with a group column."""
    generator = np.random.default_rng(seed)
    labels = [["bad", "good"][row % 2] for row in range(n_rows)]
    texts = []
    for label in labels:
        n_words = int(generator.integers(1, 37))
        telling = generator.random(n_words) < 0.5
        telling[0] = True
        texts.append(" ".join(generator.choice(WORDS[label] if tells else NEUTRAL) for tells in telling))
    return pd.DataFrame({"text": texts, "label": labels, "film": [f"film{row % n_groups}" for row in range(n_rows)]})


def save_tokenizer(folder: Path) -> None:
    """Save a word-level tokenizer that writes [CLS] a [SEP] b [SEP]."""
    words = [*SPECIAL, *WORDS["good"], *WORDS["bad"], *NEUTRAL]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=N_POSITIONS,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)


def save_tiny_bert(folder: Path, *, dropout: float = 0.1) -> str:
    """Save a random BERT of 2 layers of 32 features with its tokenizer; return the folder."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(SPECIAL) + len(NEUTRAL) + 40,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=N_POSITIONS,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        pad_token_id=0,
    )
    BertForSequenceClassification(config).bert.save_pretrained(folder)
    save_tokenizer(folder)
    return str(folder)
