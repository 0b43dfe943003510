"""Designs that papers name, made of our blocks: they attach, count, learn, and each part matters."""

from typing import Any

import pytest
import torch
from tiny_models import HEADS, design, inputs_for, labels_for, logits, perturb

from autopeft.models.artifact import load, pack
from autopeft.models.attach import Attached, attach
from autopeft.models.base import Base

# He et al. 2022, section 4.6, with the widths of tiny models: a wide parallel adapter scaled by 4, a short prefix.
MAM = [{"adapter": {"size": 16, "mode": "parallel", "scaling": 4, "activation": "gelu"}}, {"prefix": {"length": 5}}]
# Mao et al. 2022, section 3.2: every technique behind a gate of its own.
UNIPELT = [
    {"adapter": {"size": 6, "gate": True, "activation": "gelu"}},
    {"lora": {"rank": 4, "roles": ["query", "value"], "gate": True}},
    {"prefix": {"length": 5, "gate": True}},
]
# Zhou et al. 2024, section 3.1: a serial and a parallel adapter and a prefix in the chosen layers.
AUTOPEFT = [
    {"adapter": {"size": 3, "mode": "serial", "layers": [0, 2], "activation": "gelu"}},
    {"adapter": {"size": 6, "mode": "parallel", "layers": [0, 2], "activation": "gelu"}},
    {"prefix": {"length": 5, "layers": [0, 2]}},
]


def bottleneck(width: int, size: int) -> int:
    return 2 * width * size + size + width


def mam(base: Base) -> int:
    model = base.summary
    return 3 * (bottleneck(32, 16) + 2 * 5 * model.n_key_value_heads * model.head_size)


def unipelt(base: Base) -> int:
    model = base.summary
    key_width = model.n_key_value_heads * model.head_size
    gates = (1 + 2 + 1) * 33  # one for the adapter, one for each of LoRA's maps, one for the prefix
    return 3 * (bottleneck(32, 6) + 4 * (64 + 32 + key_width) + 2 * 5 * key_width + gates)


def autopeft(base: Base) -> int:
    model = base.summary
    return 2 * (bottleneck(32, 3) + bottleneck(32, 6) + 2 * 5 * model.n_key_value_heads * model.head_size)


def train(attached: Attached, inputs: dict[str, torch.Tensor], n_steps: int) -> list[float]:
    """Train without dropout, and return the losses."""
    labels = labels_for(attached.base.head, inputs)
    optimizer = torch.optim.AdamW([p for group in attached.groups.values() for p in group], lr=1e-2)
    losses = []
    for _ in range(n_steps):
        loss = attached.model(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize(
    ("blocks", "count"), [(MAM, mam), (UNIPELT, unipelt), (AUTOPEFT, autopeft)], ids=["MAM", "UniPELT", "AutoPEFT"]
)
def test_it_counts_learns_and_loads(bases: dict[str, Base], tmp_path: Any, name: str, blocks: Any, count: Any) -> None:
    base, inputs = bases[name], inputs_for(name)
    made = design(*blocks)
    assert HEADS[name].labels
    with attach(base, made) as attached:
        assert attached.n_trainable == base.summary.n_head_parameters + count(base)
        start = logits(base.model, inputs)
        losses = train(attached, inputs, 12)
        assert losses[-1] < 0.7 * losses[0]
        answer, state = logits(base.model, inputs), attached.state()
        assert not torch.allclose(answer, start, atol=1e-3)
        for kind, group in attached.groups.items():
            perturb(attached, only=group)
            assert not torch.allclose(logits(base.model, inputs), answer, atol=1e-4), kind
            attached.load_state(state)
        for file, content in pack(attached, metadata={}).items():
            (tmp_path / file).write_bytes(content)
    torch.testing.assert_close(logits(load(tmp_path)[0], inputs), answer, atol=1e-5, rtol=1e-5)


def test_closed_gates_leave_the_base(bases: dict[str, Base]) -> None:
    """With every gate at zero UniPELT's adapter and LoRA add nothing, whatever they have learned."""
    base, inputs = bases["bert"], inputs_for("bert")
    with attach(base, design()):
        expected = logits(base.model, inputs)
    with attach(base, design(*UNIPELT[:2])) as attached:
        perturb(attached, only=[*attached.groups["adapter"], *attached.groups["lora"]])
        assert not torch.allclose(logits(base.model, inputs), expected, atol=1e-3)
        with torch.no_grad():
            for path, parameter in base.model.named_parameters():
                if ".gate." in path:
                    parameter.fill_(-1e4 if path.endswith("bias") else 0)
        assert torch.equal(logits(base.model, inputs), expected)
