"""Configurations without weights."""

import pytest
import transformers


@pytest.fixture(scope="session")
def llama_config(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a folder that holds the configuration of a small Llama and nothing else."""
    folder = tmp_path_factory.mktemp("llama")
    transformers.LlamaConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=128,
        max_position_embeddings=64,
        vocab_size=99,
        pad_token_id=0,
    ).save_pretrained(folder)
    return str(folder)
