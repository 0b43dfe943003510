import dataclasses
import sys

import bitsandbytes
import pytest
import torch
from tiny_models import HEAD, content, design, logits

from autopeft.errors import MissingDependencyError
from autopeft.models.attach import attach
from autopeft.models.base import Base, load_base
from autopeft.spec.block import FOUR_BIT, QUANTIZED

HYBRID = design(
    {"lora": {"rank": 4}}, {"adapter": {"size": 8, "mode": "parallel"}}, {"prefix": {"length": 4, "layers": [2]}}
)
LAYERS = {"int8": bitsandbytes.nn.Linear8bitLt, **dict.fromkeys(FOUR_BIT, bitsandbytes.nn.Linear4bit)}


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(1000, 2000, (4, 12), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("quantization", QUANTIZED)
def test_layers_are_quantized_and_the_head_is_not(real_base: Base, minilm: str, quantization: str) -> None:
    base = load_base(minilm, HEAD, quantization=quantization)  # type: ignore[arg-type]
    assert base.summary == real_base.summary
    for layer in base.summary.layers:
        for role in layer.roles.values():
            assert isinstance(base.model.get_submodule(role.path), LAYERS[quantization])
    assert type(base.model.classifier) is torch.nn.Linear
    stored = sum(t.numel() * t.element_size() for t in base.model.bert.encoder.state_dict().values())
    full = sum(t.numel() * t.element_size() for t in real_base.model.bert.encoder.state_dict().values())
    assert stored < full / 3
    with attach(base, dataclasses.replace(design(), quantization=quantization)):  # type: ignore[arg-type]
        answer = logits(base.model, batch())
    with attach(real_base, design()):
        expected = logits(real_base.model, batch())
    assert 0 < (answer - expected).abs().max() < 0.1


@pytest.mark.parametrize("quantization", QUANTIZED)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_reach_everything_after_an_evaluation_and_the_base_stays(
    minilm: str, quantization: str, precision: str
) -> None:
    base = load_base(minilm, HEAD, quantization=quantization, precision=precision)  # type: ignore[arg-type]
    before = content(base.model)
    made = dataclasses.replace(HYBRID, quantization=quantization)  # type: ignore[arg-type]
    with attach(base, made) as attached:
        parameters = [p for group in attached.groups.values() for p in group]
        optimizer = torch.optim.AdamW(parameters, lr=1e-3)
        for n_steps in range(3):
            logits(base.model, batch())
            base.model.train()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = base.model(**batch(), labels=torch.tensor([0, 1, 1, 1])).loss
            loss.backward()
            optimizer.step()
            reached = [p.grad is not None and bool(p.grad.isfinite().all()) for p in parameters]
            assert all(reached)
            if n_steps > 0:  # after the first step nothing is zero any more that hides a gradient
                assert all(bool(p.grad.abs().sum() > 0) for p in parameters if p.grad is not None)
            optimizer.zero_grad()
    base.verify()
    assert content(base.model) == before


def test_an_unquantized_base_needs_no_bitsandbytes(minilm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    load_base(minilm, HEAD)
    with pytest.raises(MissingDependencyError, match="pip install bitsandbytes"):
        load_base(minilm, HEAD, quantization="nf4")


def test_conv1d_models_are_quantized_too(folders: dict[str, str]) -> None:
    base = load_base(folders["gpt2"], HEAD, quantization="nf4")
    plain = load_base(folders["gpt2"], HEAD)
    assert base.summary == plain.summary
    with attach(base, dataclasses.replace(design({"lora": {"rank": 2}}), quantization="nf4")) as attached:
        assert attached.n_trainable == attach(plain, design({"lora": {"rank": 2}})).n_trainable
