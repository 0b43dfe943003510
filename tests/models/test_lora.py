import math
import warnings
from pathlib import Path

import peft
import pytest
import torch
import transformers
from tiny_models import ARCHITECTURES, BERT_LIKE, HEAD, design, inputs_for, logits, perturb

from autopeft.errors import DesignError
from autopeft.models.artifact import pack
from autopeft.models.attach import Attached, attach
from autopeft.models.base import Base, load_base
from autopeft.models.blocks.lora import Lora
from autopeft.spec.design import Design
from autopeft.spec.training import Training
from autopeft.training.optimizer import make_optimizer


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("dora", [False, True])
def test_the_count_is_the_formula_and_step_0_is_the_base(bases: dict[str, Base], name: str, dora: bool) -> None:
    base, rank, text = bases[name], 4, inputs_for(name)
    with attach(base, design()):
        expected = logits(base.model, text)
    with attach(base, design({"lora": {"rank": rank, "dora": dora, "layers": [0, 2]}})) as attached:
        shapes = [role for i in (0, 2) for role in base.summary.layers[i].roles.values()]
        n_lora = sum(rank * (s.in_features + s.out_features) + (s.out_features if dora else 0) for s in shapes)
        assert sum(p.numel() for p in attached.groups["lora"]) == n_lora
        torch.testing.assert_close(logits(base.model, text), expected, atol=1e-5, rtol=1e-4)
        perturb(attached)
        assert (logits(base.model, text) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("rslora", [False, True])
def test_the_update_is_the_papers(bases: dict[str, Base], rslora: bool) -> None:
    """Hu et al. 2021, eq. 3: h = W x + (alpha / r) B A x; rsLoRA divides by the root of r."""
    base = bases["bert"]
    block = {"rank": 4, "alpha": 10, "roles": ["mlp_up"], "layers": [1], "rslora": rslora}
    hidden = torch.randn(5, 32)
    path = base.summary.layers[1].roles["mlp_up"].path
    plain = base.model.get_submodule(path)
    with attach(base, design({"lora": block})) as attached:
        perturb(attached)
        state = attached.state()
        scale = 10 / (math.sqrt(4) if rslora else 4)
        a, b = state[f"{path}.lora_A.default.weight"], state[f"{path}.lora_B.default.weight"]
        expected = plain(hidden) + scale * hidden @ a.T @ b.T
        with torch.no_grad():
            torch.testing.assert_close(base.model.get_submodule(path)(hidden), expected)


def test_blocks_with_different_ranks_share_one_design(bases: dict[str, Base]) -> None:
    base = bases["llama"]
    blocks = [
        {"lora": {"rank": 2, "roles": ["query", "value"], "layers": [0, 1]}},
        {"lora": {"rank": 6, "alpha": 3, "roles": ["key"], "layers": [1]}},
        {"lora": {"rank": 4, "layers": [2]}},
    ]
    with attach(base, design(*blocks)) as attached:
        scaling = {}
        for name, module in base.model.named_modules():
            if hasattr(module, "lora_A"):
                scaling[name.removeprefix("model.layers.")] = (module.r["default"], module.scaling["default"])
        last = {role.path.removeprefix("model.layers."): (4, 2.0) for role in base.summary.layers[2].roles.values()}
        assert scaling == last | {
            "0.self_attn.q_proj": (2, 2.0),
            "0.self_attn.v_proj": (2, 2.0),
            "1.self_attn.q_proj": (2, 2.0),
            "1.self_attn.v_proj": (2, 2.0),
            "1.self_attn.k_proj": (6, 0.5),
        }
        assert attached.design.kinds == ("lora",)


def test_layer_names_that_begin_alike_are_told_apart(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Layers 1 and 10 to 12: suffixes and patterns of peft must not confuse them."""
    folder = tmp_path_factory.mktemp("deep")
    transformers.BertModel(transformers.BertConfig(**{**BERT_LIKE, "num_hidden_layers": 13})).save_pretrained(folder)
    base = load_base(str(folder), HEAD)
    blocks = [{"lora": {"rank": 2, "layers": [1, 11]}}, {"lora": {"rank": 3, "layers": [10, 12, 2]}}]
    with attach(base, design(*blocks)):
        ranks: dict[int, set[int]] = {}
        for name, module in base.model.named_modules():
            if hasattr(module, "lora_A"):
                ranks.setdefault(int(name.split(".")[3]), set()).add(module.r["default"])
    assert ranks == {1: {2}, 11: {2}, 10: {3}, 12: {3}, 2: {3}}


def test_per_layer_ranks_open_in_stock_peft(tmp_path: Path, text: dict[str, torch.Tensor]) -> None:
    """13 layers: a pattern for layer 1 leaves 11 and 12 alone, and the other way round."""
    folder = str(tmp_path / "model")
    config = transformers.BertConfig(**{**BERT_LIKE, "num_hidden_layers": 13})
    transformers.BertModel(config).save_pretrained(folder)
    base = load_base(folder, HEAD)
    made = design(
        {"lora": {"rank": 3, "alpha": 1, "layers": [1]}},
        {"lora": {"rank": 4, "layers": [0, 10, 11]}},
        {"lora": {"rank": 2, "roles": ["query"], "layers": [2, 12]}},
        {"lora": {"rank": 5, "alpha": 7, "roles": ["value"], "layers": [2, 12]}},
    )
    with attach(base, made) as attached:
        perturb(attached)
        expected = logits(base.model, text)
        for file, content in pack(attached, metadata={}).items():
            (tmp_path / file).write_bytes(content)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")
        stock = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, pad_token_id=1)
        model = peft.PeftModel.from_pretrained(stock, tmp_path)
    torch.testing.assert_close(logits(model, text), expected, atol=1e-5, rtol=1e-5)
    scaling = {name: module.scaling["default"] for name, module in model.named_modules() if hasattr(module, "lora_A")}
    query = "base_model.model.bert.encoder.layer.{}.attention.self.query"
    assert [scaling[query.format(layer)] for layer in (1, 11, 12)] == [1 / 3, 2, 2]


def test_lora_fa_trains_b_alone(bases: dict[str, Base], text: dict[str, torch.Tensor]) -> None:
    """Zhang et al. 2023 (LoRA-FA), section 3: W = W0 + B A with A drawn once; half of the numbers train."""
    base = bases["bert"]
    made = design({"lora": {"rank": 4, "freeze_a": True}})
    with attach(base, made) as attached:
        before = attached.state()
        take_steps(attached, text)
        after = attached.state()
        for name in (name for name in before if ".lora_" in name):
            assert torch.equal(before[name], after[name]) is (".lora_A." in name)
            assert bool(before[name].any()) is (".lora_A." in name)
    shapes = [role for layer in base.summary.layers for role in layer.roles.values()]
    assert sum(p.numel() for p in attached.groups["lora"]) == sum(4 * s.out_features for s in shapes)


def test_lora_plus_moves_b_by_a_multiple(bases: dict[str, Base], text: dict[str, torch.Tensor]) -> None:
    """Hayou et al. 2024, eq. 3: eta_B = lambda eta_A. AdamW's first step moves each number by its rate."""
    block = {"rank": 2, "roles": ["value"], "b_rate_ratio": 16}
    with attach(bases["bert"], design({"lora": block})) as attached:
        perturb(attached)  # B is not zero then, and A has a gradient
        before = attached.state()
        take_steps(attached, text, n=1, rate=1e-3)
        moved = {name: (tensor - before[name]).abs().median() for name, tensor in attached.state().items()}
        assert {round(float(v), 5) for n, v in moved.items() if ".lora_A." in n} == {1e-3}
        assert {round(float(v), 5) for n, v in moved.items() if ".lora_B." in n} == {16e-3}


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_gate_is_the_papers(bases: dict[str, Base], dropout: float) -> None:
    """Mao et al. 2022, section 3.2: the update is scaled by the mean over tokens of sigmoid(w x + c)."""
    base = bases["bert"]
    block = {"rank": 4, "alpha": 6, "roles": ["mlp_down"], "layers": [1], "gate": True, "dropout": dropout}
    hidden = torch.randn(2, 5, 48)
    path = base.summary.layers[1].roles["mlp_down"].path
    plain = base.model.get_submodule(path)
    with attach(base, design({"lora": block})) as attached, torch.no_grad():
        perturb(attached)
        base.model.eval()
        state = attached.state()
        a, b = state[f"{path}.lora_A.default.weight"], state[f"{path}.lora_B.default.weight"]
        gate = torch.sigmoid(hidden @ state[f"{path}.gate.linear.weight"].T + state[f"{path}.gate.linear.bias"])
        assert float(gate.std()) > 0.01
        expected = plain(hidden) + gate.mean(dim=1, keepdim=True) * 6 / 4 * hidden @ a.T @ b.T
        torch.testing.assert_close(base.model.get_submodule(path)(hidden), expected, atol=1e-5, rtol=1e-5)
        assert attached.design.serving(base.summary) == "autopeft"


def take_steps(attached: Attached, text: dict[str, torch.Tensor], n: int = 3, rate: float = 1e-2) -> None:
    """Train as the loop does, without its schedule."""
    optimizer = make_optimizer(attached, {"lora": rate}, Training(weight_decay=0.0))
    for _ in range(n):
        torch.nn.functional.cross_entropy(attached.model(**text).logits, torch.tensor([0, 1, 0])).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_alpha() -> None:
    assert Lora(rank=8).alpha == 16
    assert Lora(rank=8, alpha_ratio=4).alpha == 32  # type: ignore[call-arg]
    assert Lora(rank=8, alpha=3).alpha == 3
    with pytest.raises(ValueError, match="exclude each other"):
        Lora(rank=8, alpha=3, alpha_ratio=1)  # type: ignore[call-arg]
    made = design({"lora": {"rank": "8", "alpha_ratio": 4}})
    assert Design.from_dict(made.to_dict()).blocks == (Lora(rank=8, alpha=32),)


def test_the_canonical_form_and_the_words(bases: dict[str, Base]) -> None:
    summary = bases["bert"].summary
    spelled = design({"lora": {"rank": 2, "roles": list(summary.roles), "layers": [2, 0, 1]}})
    assert spelled.resolve(summary) == design({"lora": {"rank": 2}}).resolve(summary) == design({"lora": {"rank": 2}})
    assert design({"lora": {"rank": 8, "roles": ["value", "query"]}}).describe() == "LoRA r=8 on query, value"
    assert spelled.serving(summary) == "merge"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"freeze_a": True}, "LoRA-FA r=2 on all roles"),
        ({"b_rate_ratio": 16}, "LoRA+ (B at 16x) r=2 on all roles"),
        ({"gate": True, "rslora": True}, "gated rsLoRA r=2 on all roles"),
        ({"dora": True, "freeze_a": True}, "DoRA-FA r=2 on all roles"),
    ],
)
def test_the_words_of_the_variants(settings: dict[str, object], words: str) -> None:
    assert design({"lora": {"rank": 2, **settings}}).describe() == words


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([{"rank": 9000}], "rank <= hidden_size must hold, but got rank=9000, hidden_size=32"),
        ([{"rank": 17, "roles": ["key"]}], r"rank <= min\(in_features, out_features\).*rank=17"),
        ([{"rank": 2, "roles": ["qkv"]}], "query, key, value, attention_output, mlp_up, mlp_gate, mlp_down.*'qkv'"),
        ([{"rank": 2, "layers": [0]}, {"rank": 3, "roles": ["key"], "layers": [0, 1]}], "one lora.*layers.0.*k_proj"),
        ([{"rank": 2, "layers": [0]}, {"rank": 2, "rslora": True, "layers": [1]}], "same rslora.*False and True"),
        ([{"rank": 2, "layers": [0]}, {"rank": 2, "dora": True, "layers": [1]}], "same dora"),
        ([{"rank": 2, "layers": [0]}, {"rank": 2, "dropout": 0.5, "layers": [1]}], "same dropout"),
        ([{"rank": 2, "freeze_a": True, "b_rate_ratio": 16}], "A is frozen, and got b_rate_ratio=16; leave out"),
        (
            [{"rank": 2, "gate": True, "dora": True}],
            "DoRA changes the map's norm too; leave out lora.gate or lora.dora",
        ),
    ],
)
def test_what_cannot_be_is_refused(bases: dict[str, Base], blocks: list[dict[str, object]], message: str) -> None:
    with pytest.raises(DesignError, match=message):
        design(*({"lora": block} for block in blocks)).check(bases["llama"].summary)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rank": 0},
        {"rank": "many"},
        {"rank": 2, "dropout": 1},
        {"rank": 2, "alpha": 0},
        {"rank": 2, "alpha_ratio": -1},
        {"rank": 2, "alpha_ratio": "x"},
        {"rank": 2, "freeze_A": True},
        {"rank": 2, "b_rate_ratio": 0},
        {"rank": 2, "b_rate_ratio": float("inf")},
    ],
)
def test_settings_are_validated_when_built(settings: dict[str, object]) -> None:
    with pytest.raises(DesignError, match="lora"):
        design({"lora": settings})
