"""Designs on real weights: a BERT, a Llama and a vision transformer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from dinov2 import write_dinov2
from tiny_models import HEAD, IMAGE_HEAD, LANGUAGE_HEAD, content, design, labels_for, logits, perturb

from autopeft.models.artifact import load, pack
from autopeft.models.attach import attach
from autopeft.models.base import Base, build_meta, load_base
from autopeft.spec.model import Head

SMOLLM2 = Path(__file__).parents[2] / "studies" / "smollm2" / "model"
LORA = {"lora": {"rank": 4}}
ADAPTER = {"adapter": {"size": 8, "at": ["attention", "mlp"]}}
PREFIX = {"prefix": {"length": 4, "layers": [1, 3]}}
DESIGNS = [(LORA,), (LORA, ADAPTER, PREFIX), (ADAPTER, {"ia3": {}})]
MODELS: dict[str, Head] = {"minilm": HEAD, "smollm2": LANGUAGE_HEAD, "dinov2": IMAGE_HEAD}


@pytest.fixture(scope="module")
def real(minilm: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function that loads a real model once."""
    kept: dict[str, Base] = {}

    def get(name: str) -> Base:
        if name not in kept:
            folder = {"minilm": minilm, "smollm2": str(SMOLLM2)}.get(name) or str(tmp_path_factory.mktemp(name))
            if name == "dinov2":
                write_dinov2(Path(folder))
            assert Path(folder, "config.json").is_file(), "SmolLM2 is missing: make smollm2"
            kept[name] = load_base(folder, MODELS[name])
        return kept[name]

    return get


def inputs_for(name: str) -> dict[str, torch.Tensor]:
    """Return a batch of two; images are smaller than DINOv2's own, which it takes as they come."""
    generator = torch.Generator().manual_seed(0)
    if name == "dinov2":
        return {"pixel_values": torch.randn(2, 3, 56, 56, generator=generator)}
    ids = torch.randint(5, 20_000, (2, 8), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.slow
@pytest.mark.parametrize("blocks", DESIGNS, ids=lambda blocks: "+".join(kind for block in blocks for kind in block))
@pytest.mark.parametrize("name", MODELS)
def test_a_design_on_real_weights(real: Any, tmp_path: Path, name: str, blocks: tuple[dict[str, Any], ...]) -> None:
    """Count, train a step, export, detach, load."""
    base, inputs, made = real(name), inputs_for(name), design(*blocks)
    plain, tensors = logits(base.model, inputs), content(base.model)
    with torch.device("meta"), attach(build_meta(base.summary.name, base.head), made) as imagined:
        n_trainable = imagined.n_trainable
    with attach(base, made) as attached:
        assert attached.n_trainable == n_trainable == sum(p.numel() for p in base.model.parameters() if p.requires_grad)
        perturb(attached)
        optimizer = torch.optim.SGD([p for group in attached.groups.values() for p in group], lr=1e-4)
        labels = labels_for(base.head, inputs)[:2]
        loss = base.model.train()(**inputs, labels=labels).loss
        loss.backward()
        assert all(
            p.grad is not None and bool(p.grad.isfinite().all()) for group in attached.groups.values() for p in group
        )
        optimizer.step()
        answer = logits(base.model, inputs)
        assert (answer - plain).abs().max() > 1e-3
        for file, written in pack(attached, metadata={}).items():
            (tmp_path / file).write_bytes(written)
    assert content(base.model) == tensors
    assert torch.equal(logits(base.model, inputs), plain)
    loaded = logits(load(tmp_path)[0], inputs)
    assert (loaded - answer).abs().max() <= 1e-5 * max(1.0, float(answer.abs().max()))


@pytest.mark.slow
def test_dinov2_has_the_parameters_of_its_authors(real: Any) -> None:
    """22,056,576 on the model's card, without the token of masked patches."""
    assert real("dinov2").summary.n_parameters == 22_056_576 - 384
