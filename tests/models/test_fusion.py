"""AdapterFusion against the algebra of its paper, and what it takes from exported folders."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import design, logits, perturb
from torch.nn import functional

from autopeft.errors import ArtifactError, DesignError
from autopeft.models.artifact import load, pack
from autopeft.models.attach import attach
from autopeft.models.base import Base
from autopeft.spec.design import Design
from autopeft.spec.space import SearchSpace
from autopeft.spec.unsupported import outside_content

FIRST = {"adapter": {"size": 4, "at": ["mlp"], "activation": "gelu"}}
SECOND = {"adapter": {"size": 3, "at": ["attention", "mlp"], "mode": "parallel", "scaling": 2.0, "layers": [0, 2]}}


def export(base: Base, folder: Path, *blocks: dict[str, Any], seed: int = 1) -> str:
    """Export a design with random values, as if it had been trained."""
    made = design(*blocks)
    with attach(base, made) as attached:
        perturb(attached, seed=seed)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in pack(attached, metadata={}).items():
            (folder / name).write_bytes(content)
    return str(folder)


@pytest.fixture
def members(bases: dict[str, Base], tmp_path: Path) -> tuple[str, str]:
    """Return the folders of a serial and a parallel adapter of the tiny BERT."""
    first = export(bases["bert"], tmp_path / "first", FIRST)
    return first, export(bases["bert"], tmp_path / "second", SECOND, seed=2)


def bottleneck(state: dict[str, torch.Tensor], x: torch.Tensor, block: dict[str, Any]) -> torch.Tensor:
    activation = functional.gelu if block.get("activation") == "gelu" else functional.relu
    inner = activation(x @ state["down.weight"].T + state["down.bias"])
    added: torch.Tensor = inner @ state["up.weight"].T + state["up.bias"]
    return block.get("scaling", 1.0) * added


def below(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.partition(prefix)[2]: tensor for name, tensor in state.items() if prefix in name}


def test_a_study_notices_when_a_member_is_another_adapter_in_the_same_folder(
    bases: dict[str, Base], members: tuple[str, str]
) -> None:
    model = bases["bert"].summary
    space = SearchSpace.from_dict({"blocks": {"fusion": {"adapters": [list(members), [members[0]]]}}})
    before = outside_content(space, model)
    assert set(before) == set(members)
    assert outside_content(SearchSpace.load("hybrid"), model) == {}
    export(bases["bert"], Path(members[1]), SECOND, seed=3)
    after = outside_content(space, model)
    assert {folder for folder in members if before[folder] != after[folder]} == {members[1]}


def test_the_equations_of_the_paper(
    bases: dict[str, Base], text: dict[str, torch.Tensor], members: tuple[str, str]
) -> None:
    """Section 3.2: s = softmax(h Q · z_n K), o = Σ s_n V z_n, beside the residual; z_n is what an adapter adds."""
    base = bases["bert"]
    roles = base.summary.layers[2].roles
    seen: dict[str, torch.Tensor] = {}
    plain, up = base.model.get_submodule(roles["mlp_down"].path), base.model.get_submodule(roles["mlp_up"].path)
    handles = [
        up.register_forward_pre_hook(lambda _m, args: seen.update(x=args[0])),
        plain.register_forward_hook(lambda _m, _args, out: seen.update(h=out)),
    ]
    try:
        with attach(base, design({"fusion": {"adapters": list(members)}})) as attached:
            perturb(attached)
            handles.append(plain.register_forward_hook(lambda _m, _args, out: seen.update(out=out)))
            state = below(attached.state(), "layer.2.autopeft_fusion_mlp.")
            logits(base.model, text)
    finally:
        for handle in handles:
            handle.remove()
    h = seen["h"]
    serial = bottleneck(below(state, "adapters.0.bottlenecks.serial."), h, FIRST["adapter"])
    parallel = bottleneck(below(state, "adapters.1.bottlenecks.parallel."), seen["x"], SECOND["adapter"])
    query = h @ state["query.weight"].T
    scores = [(query * (z @ state["key.weight"].T)).sum(-1) for z in (serial, parallel)]
    total = scores[0].exp() + scores[1].exp()
    expected = h
    for z, score in zip((serial, parallel), scores, strict=True):
        expected = expected + (score.exp() / total)[..., None] * (z @ state["value.weight"].T)
    torch.testing.assert_close(seen["out"], expected, atol=1e-5, rtol=1e-5)
    assert (seen["out"] - h).abs().max() > 1e-2


@pytest.mark.parametrize("blocks", [[FIRST], [SECOND], [FIRST, SECOND]], ids=["serial", "parallel", "both"])
def test_one_adapter_alone_is_that_adapter(
    bases: dict[str, Base], text: dict[str, torch.Tensor], tmp_path: Path, blocks: list[dict[str, Any]]
) -> None:
    base = bases["bert"]
    folder = export(base, tmp_path / "one", *blocks)
    made = design(*blocks)
    with attach(base, made) as attached:
        perturb(attached)  # as the export was
        adapters = {name: t for name, t in attached.state().items() if "autopeft_adapter" in name}
        head = {name: t for name, t in attached.state().items() if name not in adapters}
        expected = logits(base.model, text)
    with attach(base, design({"fusion": {"adapters": [folder]}})) as attached:
        width = base.summary.hidden_size
        n_places = len({at for block in made.blocks for at in block.sublayers(base.summary)})
        assert sum(p.numel() for p in attached.groups["fusion"]) == n_places * width**2
        state = attached.state()
        attached.load_state({**state, **head})
        torch.testing.assert_close(logits(base.model, text), expected, atol=1e-3, rtol=1e-3)
        exact = {n: torch.eye(width) if n.endswith("value.weight") else t for n, t in {**state, **head}.items()}
        attached.load_state(exact)
        torch.testing.assert_close(logits(base.model, text), expected, atol=1e-5, rtol=1e-5)


def test_the_members_stay_as_they_were_exported(bases: dict[str, Base], members: tuple[str, str]) -> None:
    base = bases["bert"]
    with attach(base, design({"fusion": {"adapters": list(members)}})) as attached:
        frozen = attached.sites["fusion"].frozen
        assert not any(tensor.requires_grad for tensor in frozen)
        state = below(attached.state(), "layer.0.autopeft_fusion_mlp.adapters.0.bottlenecks.serial.")
    with attach(base, design(FIRST)) as attached:
        perturb(attached)
        exported = below(attached.state(), "layer.0.autopeft_adapter_mlp.")
    assert state.keys() == exported.keys()
    assert all(torch.equal(state[name], exported[name]) for name in state)


def test_the_penalty_holds_the_value_map_near_the_identity(bases: dict[str, Base], members: tuple[str, str]) -> None:
    fused = design({"fusion": {"adapters": list(members), "regularization": 0.5}})
    with attach(bases["bert"], fused) as attached:
        start = attached.penalty()
        assert start is not None
        assert start < 1e-6
        perturb(attached)
        values = [t for name, t in attached.state().items() if name.endswith("value.weight")]
        expected = 0.5 * sum(float((value - torch.eye(len(value))).square().sum()) for value in values)
        after = attached.penalty()
        assert after is not None
        assert after.item() == pytest.approx(expected, rel=1e-5)


def test_a_design_holds_what_its_members_are(bases: dict[str, Base], members: tuple[str, str]) -> None:
    summary = bases["bert"].summary
    one = design({"fusion": {"adapters": list(members)}}).resolve(summary)
    other = design({"fusion": {"adapters": list(reversed(members)), "layers": [0, 1, 2]}}).resolve(summary)
    assert (one, one.key) == (other, other.key)
    for folder in members:
        shutil.rmtree(folder)
    again = Design.from_dict(json.loads(json.dumps(one.to_dict())))
    assert (again, again.key) == (one, one.key)
    assert again.describe() == "fusion of first and second"


def test_it_is_where_its_members_are(bases: dict[str, Base], members: tuple[str, str]) -> None:
    base = bases["bert"]
    (only_second,) = design({"fusion": {"adapters": [members[1]]}}).resolve(base.summary).blocks
    assert only_second.layers == "all"
    assert only_second.layer_indices(base.summary) == (0, 2)
    with pytest.raises(DesignError, match=r"layer 1 has none: they are in layers 0, 2; change fusion.layers"):
        design({"fusion": {"adapters": [members[1]], "layers": [1, 2]}}).check(base.summary)
    with attach(base, design({"fusion": {"adapters": list(members), "layers": [0, 1]}})) as attached:
        places = {name.rpartition(".adapters.")[0] for name in attached.state() if ".adapters." in name}
        assert sorted(place.partition("layer.")[2] for place in places) == [
            "0.autopeft_fusion_attention",
            "0.autopeft_fusion_mlp",
            "1.autopeft_fusion_mlp",
        ]


def test_an_export_loads_without_its_members(
    bases: dict[str, Base], text: dict[str, torch.Tensor], members: tuple[str, str], tmp_path: Path
) -> None:
    base = bases["bert"]
    folder = tmp_path / "fused"
    folder.mkdir()
    fused = design({"fusion": {"adapters": list(members)}}, {"adapter": {"size": 2}})
    with attach(base, fused) as attached:
        perturb(attached)
        expected = logits(base.model, text)
        for name, content in pack(attached, metadata={}).items():
            (folder / name).write_bytes(content)
    for member in members:
        shutil.rmtree(member)
    torch.testing.assert_close(logits(load(folder)[0], text), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ArtifactError, match="first is not there; put it back, or load an export of a trained fusion"):
        attach(base, fused)


def test_a_member_that_has_changed_is_refused(bases: dict[str, Base], members: tuple[str, str]) -> None:
    base = bases["bert"]
    fused = design({"fusion": {"adapters": list(members)}})
    export(base, Path(members[0]), FIRST, seed=9)
    with pytest.raises(ArtifactError, match=r"first has changed since; make the design anew"):
        attach(base, fused)
    with attach(base, design({"fusion": {"adapters": list(members)}})):
        pass


def test_a_member_of_another_base_is_refused(bases: dict[str, Base], tmp_path: Path, members: tuple[str, str]) -> None:
    other = export(bases["roberta"], tmp_path / "other", FIRST)
    with pytest.raises(DesignError, match=r"but .*other was trained on another one than"):
        design({"fusion": {"adapters": [*members, other]}}).check(bases["bert"].summary)


def test_two_fusions_in_one_layer_are_refused(bases: dict[str, Base], members: tuple[str, str]) -> None:
    blocks = [{"fusion": {"adapters": [folder], "layers": [0]}} for folder in members]
    with pytest.raises(DesignError, match="a layer can have one fusion, but two blocks want layer 0"):
        design(*blocks).check(bases["bert"].summary)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda base, folder: [str(folder / "missing")], "must be an exported folder with autopeft.json; export it"),
        (lambda base, folder: [], "must be a list of the folders of exported adapters"),
        (lambda base, folder: export(base, folder, FIRST), "must be a list of the folders of exported adapters"),
        (lambda base, folder: [3], "must be the path of an exported folder"),
        (lambda base, folder: [export(base, folder, {"lora": {"rank": 2}})], "only designs of adapter blocks can be"),
        (lambda base, folder: [export(base, folder, FIRST)] * 2, "each adapter can be fused once, but these hold"),
        (lambda base, folder: [{"folder": "a"}], "sha256 of an adapter to fuse: Field required"),
    ],
)
def test_what_cannot_be_fused_is_refused(bases: dict[str, Base], tmp_path: Path, made: Any, message: str) -> None:
    with pytest.raises(DesignError, match=re.escape(message)):
        design({"fusion": {"adapters": made(bases["bert"], tmp_path / "one")}})
