"""The interface for further techniques: each of these is what one file, in any package, would hold."""

from typing import ClassVar

import pytest
import torch
from tiny_models import content, design, logits, perturb, structure
from torch import nn

from autopeft.errors import ModelError
from autopeft.models.attach import attach
from autopeft.models.base import Base
from autopeft.models.technique import Site, Technique
from autopeft.spec import block as blocks
from autopeft.spec.block import Roles


class Biases(Technique):
    """BitFit: train the biases of the base."""

    kind: ClassVar[str] = "test_biases"
    size_field: ClassVar[str] = "roles"
    roles: Roles = ("query", "value")

    def attach(self, site: Site) -> None:
        for layer in self.layer_indices(site.summary):
            for role in self.roles:
                site.train(f"{site.summary.layers[layer].roles[role].path}.bias")


class Rescale(Technique):
    """(IA)3 on the values: multiply each feature, with a frozen offset that must be saved."""

    kind: ClassVar[str] = "test_rescale"
    size_field: ClassVar[str] = "strength"
    strength: float = 1.0

    def attach(self, site: Site) -> None:
        for layer in self.layer_indices(site.summary):
            scale = nn.Module()
            scale.factor = nn.Parameter(torch.ones(32))
            scale.fixed = nn.Parameter(torch.randn(32), requires_grad=False)
            scale.register_buffer("buffer", torch.randn(32))
            site.add(site.summary.layers[layer].path, "test_rescale", scale)
            site.hook(
                site.linear(layer, "value"),
                lambda _module, _args, out, scale=scale: out * scale.factor + 0.1 * (scale.fixed + scale.buffer),
            )


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks.block_kinds()
    for technique in (Biases, Rescale):
        monkeypatch.setitem(blocks._REGISTRY, technique.kind, technique)


EVERYTHING = (
    {"test_biases": {}},
    {"test_rescale": {"layers": [1]}},
    {"lora": {"rank": 2, "roles": ["query", "value"]}},
    {"adapter": {"size": 2}},
    {"prefix": {"length": 2, "layers": [0]}},
)


def test_foreign_techniques_count_train_save_and_leave_no_trace(
    bases: dict[str, Base], text: dict[str, torch.Tensor]
) -> None:
    base = bases["bert"]
    tensors, modules = content(base.model), structure(base.model)
    with attach(base, design(*EVERYTHING)) as attached:
        assert sum(p.numel() for p in attached.groups["test_biases"]) == 3 * 2 * 32
        assert sum(p.numel() for p in attached.groups["test_rescale"]) == 32
        perturb(attached)
        base.model(**text, labels=torch.tensor([0, 1, 0])).loss.backward()
        reached = {n for n, p in base.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        trained = {n for n, p in base.model.named_parameters() if p.requires_grad}
        assert reached == trained
        answer, state = logits(base.model, text), attached.state()
        for kind, group in attached.groups.items():
            perturb(attached, seed=2, only=group)
            assert not torch.allclose(logits(base.model, text), answer), kind
            attached.load_state(state)
    assert content(base.model) == tensors
    assert structure(base.model) == modules
    base.verify()
    with attach(base, design(*EVERYTHING), seed=9) as attached:
        attached.load_state(state)
        assert torch.equal(logits(base.model, text), answer)
    assert {name.rpartition(".")[2] for name in state if "test_rescale" in name} == {"factor", "fixed", "buffer"}


def test_a_taken_name_is_refused_and_undone(bases: dict[str, Base]) -> None:
    modules = structure(bases["bert"].model)
    with pytest.raises(ModelError, match="free name"):
        attach(bases["bert"], design({"test_rescale": {"layers": [1]}}, {"test_rescale": {"strength": 2.0}}))
    assert structure(bases["bert"].model) == modules
