"""Tiny models with random weights, saved as folders, so that loading is the real thing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from autopeft.models.base import Base, Head, load_base

HEAD = Head(auto_class="AutoModelForSequenceClassification", labels=("negative", "positive"))
SIZES: dict[str, Any] = {"vocab_size": 97, "pad_token_id": 1}
BERT_LIKE = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    **SIZES,
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "bert": lambda: transformers.BertConfig(**BERT_LIKE),
    "roberta": lambda: transformers.RobertaConfig(**BERT_LIKE),
    "mpnet": lambda: transformers.MPNetConfig(**BERT_LIKE),
    "deberta": lambda: transformers.DebertaV2Config(
        **BERT_LIKE, relative_attention=True, pos_att_type=["p2c", "c2p"], pooler_hidden_size=32
    ),
    "distilbert": lambda: transformers.DistilBertConfig(
        dim=32, n_layers=3, n_heads=4, hidden_dim=48, max_position_embeddings=40, **SIZES
    ),
    "llama": lambda: transformers.LlamaConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=40,
        **SIZES,
    ),
    "gpt2": lambda: transformers.GPT2Config(
        n_embd=32, n_layer=3, n_head=4, n_positions=40, vocab_size=97, eos_token_id=1, bos_token_id=1
    ),
}
ARCHITECTURES = tuple(CONFIGS)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return a folder by architecture, with a headless tiny model and real safetensors weights."""
    made = {}
    for name, config in CONFIGS.items():
        folder = tmp_path_factory.mktemp(name)
        torch.manual_seed(0)
        transformers.AutoModel.from_config(config()).save_pretrained(folder)
        made[name] = str(folder)
    return made


@pytest.fixture(scope="session")
def bases(folders: dict[str, str]) -> dict[str, Base]:
    """Return a loaded base by architecture; every test that attaches must detach."""
    return {name: load_base(folder, HEAD) for name, folder in folders.items()}


@pytest.fixture
def text() -> dict[str, torch.Tensor]:
    """Return three right-padded inputs of different lengths."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 97, (3, 9), generator=generator)
    mask = torch.ones_like(ids)
    for row, length in enumerate((9, 4, 6)):
        ids[row, length:] = 1
        mask[row, length:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def logits(base: Base, text: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return what the model answers, in evaluation mode and without a gradient."""
    base.model.eval()
    with torch.no_grad():
        answer: torch.Tensor = base.model(**text).logits
    return answer
