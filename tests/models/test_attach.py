import dataclasses

import pytest
import torch
from tiny_models import ARCHITECTURES, HEAD, HEADS, content, design, inputs_for, labels_for, logits, perturb, structure

from autopeft.errors import ArtifactError, DesignError, ModelError
from autopeft.models.attach import attach
from autopeft.models.base import Base, build_meta, load_base
from autopeft.models.blocks.lora import Lora
from autopeft.models.technique import Site
from autopeft.spec.design import Design

LORA = {"lora": {"rank": 4, "dropout": 0.1}}
ADAPTER = {"adapter": {"size": 3, "at": ["attention", "mlp"], "mode": "parallel", "layers": [0, 2]}}
PREFIX = {"prefix": {"length": 5, "layers": [1]}}
DESIGNS = {
    "head": design(),
    "lora": design(LORA),
    "adapter": design(ADAPTER),
    "prefix": design(PREFIX),
    "hybrid": design(LORA, ADAPTER, PREFIX),
}
# A model that starts with a head of its own has nothing to train in the design of no block.
COMBINATIONS = [(name, which) for name in ARCHITECTURES for which in DESIGNS if which != "head" or HEADS[name].labels]


def step(base: Base, text: dict[str, torch.Tensor]) -> None:
    base.model.train()
    base.model(**text, labels=labels_for(base.head, text)).loss.backward()


@pytest.mark.parametrize(("name", "which"), COMBINATIONS)
def test_exactly_the_trainable_parameters_get_gradients_and_are_counted(
    bases: dict[str, Base], name: str, which: str
) -> None:
    base, text = bases[name], inputs_for(name)
    with attach(base, DESIGNS[which]) as attached:
        perturb(attached)  # zero-initialised maps hide the gradient of what feeds them
        logits(base.model, text)  # an evaluation in between must not stop gradients
        step(base, text)
        trained = {n for n, p in base.model.named_parameters() if p.requires_grad}
        reached = {n for n, p in base.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        assert reached == trained
        parameters = [p for group in attached.groups.values() for p in group]
        assert len({id(p) for p in parameters}) == len(parameters) == len(trained)
        assert attached.n_trainable == sum(p.numel() for p in base.model.parameters() if p.requires_grad)
        assert set(attached.groups) == {"head", *DESIGNS[which].kinds}
        assert bool(attached.groups["head"]) == bool(base.head.labels)
        assert all(p.dtype == torch.float32 for p in parameters)
        n_head = sum(p.numel() for p in attached.groups["head"])
        assert n_head == base.summary.n_head_parameters


@pytest.mark.parametrize(("name", "which"), COMBINATIONS)
def test_the_meta_base_counts_the_same(bases: dict[str, Base], folders: dict[str, str], name: str, which: str) -> None:
    with (
        attach(bases[name], DESIGNS[which]) as real,
        attach(build_meta(folders[name], HEADS[name]), DESIGNS[which]) as meta,
    ):
        shapes = [{n: p.shape for n, p in a.model.named_parameters() if p.requires_grad} for a in (real, meta)]
        assert shapes[0] == shapes[1]
        assert all(p.is_meta for p in meta.model.parameters())


@pytest.mark.parametrize(("name", "which"), COMBINATIONS)
def test_detaching_leaves_no_trace(bases: dict[str, Base], name: str, which: str) -> None:
    base, text = bases[name], inputs_for(name)
    tensors, modules, answer = content(base.model), structure(base.model), logits(base.model, text)
    attributes = set(vars(base.model))
    identities = {n: id(p) for n, p in base.model.named_parameters()}
    attached = attach(base, DESIGNS[which], seed=3)
    optimizer = torch.optim.AdamW([p for group in attached.groups.values() for p in group], lr=0.1)
    step(base, text)
    optimizer.step()
    assert not torch.equal(logits(base.model, text), answer)
    attached.detach()
    attached.detach()  # again is allowed
    assert content(base.model) == tensors
    assert structure(base.model) == modules
    assert {n: id(p) for n, p in base.model.named_parameters()} == identities
    assert set(vars(base.model)) == attributes
    assert torch.equal(logits(base.model, text), answer)
    base.verify()


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_detaching_leaves_no_trace_on_real_weights(minilm: str, quantization: str) -> None:
    base = load_base(minilm, HEAD, quantization=quantization)  # type: ignore[arg-type]
    made = dataclasses.replace(DESIGNS["hybrid"], quantization=quantization)  # type: ignore[arg-type]
    ids = torch.randint(1000, 2000, (4, 12))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 1, 0, 1])}
    before, answer = content(base.model), logits(base.model, batch)
    for precision in (torch.float32, torch.bfloat16):
        with attach(base, made) as attached:
            optimizer = torch.optim.AdamW([p for group in attached.groups.values() for p in group], lr=1e-2)
            for _ in range(2):
                base.model.train()
                with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
                    loss = base.model(**batch).loss
                loss.backward()
                missing = [n for n, p in base.model.named_parameters() if p.requires_grad and p.grad is None]
                assert not missing
                optimizer.step()
                optimizer.zero_grad()
                logits(base.model, batch)
            base.verify()
        base.verify()
        assert content(base.model) == before
    assert torch.equal(logits(base.model, batch), answer)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_block_of_a_hybrid_changes_the_forward(bases: dict[str, Base], name: str) -> None:
    text = inputs_for(name)
    with attach(bases[name], DESIGNS["hybrid"]) as attached:
        perturb(attached)
        answer = logits(attached.model, text)
        state = attached.state()
        for kind, group in attached.groups.items():
            if not group:
                continue
            perturb(attached, seed=2, only=group)
            assert (logits(attached.model, text) - answer).abs().max() > 1e-3, kind
            attached.load_state(state)
            assert torch.equal(logits(attached.model, text), answer)


def test_values_depend_on_the_seed_alone(bases: dict[str, Base]) -> None:
    def values(made: Design, seed: int, noise: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        with attach(bases["bert"], made, seed=seed) as attached:
            assert torch.equal(torch.get_rng_state(), before)
            return attached.state()

    first, same, other = (values(DESIGNS["hybrid"], seed, noise) for seed, noise in ((7, 1), (7, 2), (8, 1)))
    assert all(torch.equal(first[name], same[name]) for name in first)
    random = [name for name, tensor in first.items() if tensor.std() > 0]
    assert {"classifier.weight"} < set(random)
    assert not any(torch.equal(first[name], other[name]) for name in random)
    head_only = values(DESIGNS["head"], 7, 3)
    assert all(torch.equal(first[name], tensor) for name, tensor in head_only.items())
    assert head_only["classifier.weight"].std() > 0


def test_state_goes_and_comes_back(bases: dict[str, Base], text: dict[str, torch.Tensor]) -> None:
    with attach(bases["bert"], DESIGNS["hybrid"]) as attached:
        perturb(attached)
        state, answer = attached.state(), logits(attached.model, text)
        assert sum(tensor.numel() for tensor in state.values()) == attached.n_trainable
        perturb(attached, seed=2)
        assert not torch.equal(logits(attached.model, text), answer)
    with attach(bases["bert"], DESIGNS["hybrid"], seed=9) as attached:
        attached.load_state(state)
        assert torch.equal(logits(attached.model, text), answer)
        name = next(iter(state))
        with pytest.raises(ArtifactError, match="lacks"):
            attached.load_state({n: t for n, t in state.items() if n != name})
        with pytest.raises(ArtifactError, match="no place for extra"):
            attached.load_state({**state, "extra": torch.zeros(1)})
        with pytest.raises(ArtifactError, match="shape"):
            attached.load_state({**state, name: torch.zeros(1, 2, 3)})
        assert torch.equal(logits(attached.model, text), answer)


def test_a_technique_that_fails_half_way_leaves_no_trace(
    bases: dict[str, Base], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = bases["bert"]
    tensors, modules = content(base.model), structure(base.model)

    original = Lora.attach_all.__func__

    def fail(cls: type[Lora], blocks: list[Lora], site: Site) -> None:
        original(cls, blocks, site)
        raise RuntimeError("half-way")

    monkeypatch.setattr(Lora, "attach_all", classmethod(fail))
    with pytest.raises(DesignError, match="RuntimeError: half-way"):
        attach(base, DESIGNS["hybrid"])
    assert content(base.model) == tensors
    assert structure(base.model) == modules
    monkeypatch.undo()
    attach(base, DESIGNS["hybrid"]).detach()


def test_a_parameter_outside_the_model_is_refused(bases: dict[str, Base], monkeypatch: pytest.MonkeyPatch) -> None:
    stray = torch.nn.Parameter(torch.zeros(2))
    monkeypatch.setattr(Lora, "attach_all", classmethod(lambda _cls, _blocks, site: site.own(stray)))
    with pytest.raises(ModelError, match="part of the model"):
        attach(bases["bert"], DESIGNS["lora"])


def test_misuse_is_refused(bases: dict[str, Base]) -> None:
    base = bases["bert"]
    with pytest.raises(ModelError, match="quantization"):
        attach(base, dataclasses.replace(DESIGNS["lora"], quantization="nf4"))
    with attach(base, DESIGNS["lora"]), pytest.raises(ModelError, match="detach it first"):
        attach(base, DESIGNS["head"])
    with pytest.raises(DesignError, match="layer=3, n_layers=3"):
        attach(base, design({"lora": {"rank": 1, "layers": [3]}}))
    assert not base.model.training
