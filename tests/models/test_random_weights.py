"""Random weights in the place of those that are missing."""

from pathlib import Path

import pytest
import torch
from tiny_models import CONFIGS, HEADS, inputs_for, logits, save

from autopeft.errors import ModelError
from autopeft.models.base import build_meta, load_base
from autopeft.models.random_weights import with_weights


@pytest.mark.parametrize("name", ["bert", "llama", "opt", "t5", "vit"])
def test_a_configuration_becomes_a_model_that_computes(name: str, tmp_path: Path):
    CONFIGS[name]().save_pretrained(tmp_path)
    shapes = build_meta(str(tmp_path), HEADS[name], needs_weights=False)
    before = torch.get_rng_state()
    with with_weights(str(tmp_path), HEADS[name]) as folder:
        base = load_base(folder, HEADS[name])
    assert torch.equal(before, torch.get_rng_state())
    assert not Path(folder).exists(), "they were made for the block alone"
    assert list(tmp_path.iterdir()) == [tmp_path / "config.json"]
    assert base.summary.layers == shapes.summary.layers
    assert base.summary.new_modules == shapes.summary.new_modules
    assert base.summary.n_parameters == shapes.summary.n_parameters
    answer = logits(base.model, inputs_for(name))
    assert answer.isfinite().all()
    assert answer.std() > 0


def test_weights_that_are_there_stay(tmp_path: Path):
    folder = save("bert", tmp_path)
    with with_weights(folder, HEADS["bert"]) as found:
        assert found == folder
    assert (tmp_path / "model.safetensors").is_file()


def test_a_model_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(ModelError, match=r"must have a config.json"), with_weights(str(tmp_path), HEADS["bert"]):
        pass
