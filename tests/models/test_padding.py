"""The token that fills batches: one for the model, the data and predictions, whatever a configuration says."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from tiny_models import HEAD, LANGUAGE_HEAD, LLAMA_LIKE

from autopeft.models.base import load_base
from autopeft.models.padding import pad_token_id
from tests.architectures.tiny import make_tokenizer


def save_llama(folder: Path, said: int | None) -> str:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**LLAMA_LIKE | {"pad_token_id": said, "num_hidden_layers": 1})
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("said", [0, 5, None])
def test_the_model_takes_the_tokenizers_padding_token(tmp_path: Path, said: int | None) -> None:
    """Alpaca-2, Vicuna and OpenLLaMA say one token in config.json and another in the tokenizer."""
    folder = save_llama(tmp_path, said)
    make_tokenizer().save_pretrained(folder)
    model = load_base(folder, HEAD).model.eval()
    assert model.config.pad_token_id == 0
    ids = torch.tensor([[7, 8, 5, 9, 0, 0, 0]])  # the token that the configuration names is a word here
    with torch.no_grad():
        padded = model(input_ids=ids, attention_mask=(ids != 0).long()).logits
        alone = model(input_ids=ids[:, :4], attention_mask=torch.ones(1, 4, dtype=torch.long)).logits
    torch.testing.assert_close(padded, alone)


def test_a_changed_tokenizer_is_read_again(tmp_path: Path) -> None:
    folder = save_llama(tmp_path, 5)
    assert load_base(folder, LANGUAGE_HEAD).model.config.pad_token_id == 5  # no tokenizer says otherwise
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    assert load_base(folder, LANGUAGE_HEAD).model.config.pad_token_id == 0
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": "</s>"}))
    base = load_base(folder, LANGUAGE_HEAD)
    assert base.model.config.pad_token_id == base.model.generation_config.pad_token_id == 1


def test_a_tokenizer_without_a_padding_token_fills_with_its_end() -> None:
    class Tokenizer:
        pad_token_id: int | None = None
        eos_token_id: int | None = 7

    tokenizer = Tokenizer()
    assert pad_token_id(tokenizer) == 7
    tokenizer.pad_token_id = 0
    assert pad_token_id(tokenizer) == 0
    tokenizer.pad_token_id = tokenizer.eos_token_id = None
    assert pad_token_id(tokenizer) is None
