import warnings
from pathlib import Path

import peft
import pytest
import torch
import transformers
from tiny_models import ARCHITECTURES, BERT_LIKE, HEAD, HEADS, design, logits, perturb

from autopeft.errors import DesignError
from autopeft.models.artifact import load, pack
from autopeft.models.attach import Attached, attach
from autopeft.models.base import Base, load_base

WITH_OWN_KEYS = [name for name in ARCHITECTURES if HEADS[name] is HEAD and name != "gpt2"]


@pytest.mark.parametrize("name", WITH_OWN_KEYS)
def test_the_count_is_the_formula_and_step_0_is_the_base(
    bases: dict[str, Base], text: dict[str, torch.Tensor], name: str
) -> None:
    base = bases[name]
    with attach(base, design()):
        expected = logits(base.model, text)
    with attach(base, design({"ia3": {"layers": [0, 2]}})) as attached:
        n_keys = 8 * base.summary.n_key_value_heads
        assert sum(p.numel() for p in attached.groups["ia3"]) == 2 * (n_keys + n_keys + 48)
        assert torch.equal(logits(base.model, text), expected)
        perturb(attached)
        assert (logits(base.model, text) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["bert", "llama", "distilbert"])
def test_the_equations_of_the_paper(bases: dict[str, Base], text: dict[str, torch.Tensor], name: str) -> None:
    """Liu et al. 2022, section 3.3: l_k * K, l_v * V, and (l_ff * gamma(W_1 x)) W_2; as three scaled weights."""
    base = bases[name]
    roles = base.summary.layers[1].roles
    with attach(base, design({"ia3": {"layers": [1]}})) as attached:
        perturb(attached)
        answer, state = logits(base.model, text), attached.state()
        scale = {role: state[f"{roles[role].path}.ia3_l.default"].flatten() for role in ("key", "value", "mlp_down")}
    head = {name: tensor for name, tensor in state.items() if "ia3" not in name}
    with attach(base, design()) as attached:
        attached.load_state(head)
        kept = {}
        for role, factor in scale.items():
            linear = base.model.get_submodule(roles[role].path)
            kept[linear] = (linear.weight.data, None if linear.bias is None else linear.bias.data)
            if role == "mlp_down":
                linear.weight.data = linear.weight.data * factor
            else:
                linear.weight.data = linear.weight.data * factor[:, None]
                if linear.bias is not None:
                    linear.bias.data = linear.bias.data * factor
        try:
            torch.testing.assert_close(logits(base.model, text), answer, atol=1e-5, rtol=1e-4)
        finally:
            for linear, (weight, bias) in kept.items():
                linear.weight.data = weight
                if bias is not None:
                    linear.bias.data = bias


def test_the_key_that_is_scaled_is_the_one_that_lora_made(bases: dict[str, Base]) -> None:
    base = bases["bert"]
    path = base.summary.layers[0].roles["key"].path
    with attach(base, design({"ia3": {}}, {"lora": {"rank": 2, "roles": ["key"]}})) as attached, torch.no_grad():
        perturb(attached)
        hidden, layer = torch.randn(4, 32), base.model.get_submodule(path)
        lora = layer.base_layer
        assert not torch.allclose(lora(hidden), lora.base_layer(hidden))
        torch.testing.assert_close(layer(hidden), lora(hidden) * layer.ia3_l["default"].flatten())


@pytest.mark.parametrize("name", WITH_OWN_KEYS)
def test_an_export_opens_in_peft_alone(
    bases: dict[str, Base], folders: dict[str, str], text: dict[str, torch.Tensor], name: str, tmp_path: Path
) -> None:
    with attach(bases[name], design({"ia3": {"layers": [0, 2]}})) as attached:
        perturb(attached)
        ours = logits(attached.model, text)
        write(attached, tmp_path)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(folders[name], num_labels=2, pad_token_id=1)
    torch.testing.assert_close(logits(open_in_peft(base, tmp_path), text), ours, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(load(tmp_path)[0], text), ours, atol=1e-5, rtol=1e-5)


def test_many_layers_whose_names_begin_alike(
    tmp_path_factory: pytest.TempPathFactory, text: dict[str, torch.Tensor]
) -> None:
    """Layers 1 and 10 to 12, and more maps than peft keeps apart in its other techniques."""
    folder, export = tmp_path_factory.mktemp("deep"), tmp_path_factory.mktemp("export")
    transformers.BertModel(transformers.BertConfig(**{**BERT_LIKE, "num_hidden_layers": 13})).save_pretrained(folder)
    base = load_base(str(folder), HEAD)
    with attach(base, design({"ia3": {"layers": [1, 2, 5, 6, 7, 8, 9, 11]}})) as attached:
        found = {name.split(".")[3] for name, module in attached.model.named_modules() if hasattr(module, "ia3_l")}
        assert found == {"1", "2", "5", "6", "7", "8", "9", "11"}
        perturb(attached)
        ours = logits(attached.model, text)
        write(attached, export)
    stock = transformers.AutoModelForSequenceClassification.from_pretrained(str(folder), num_labels=2)
    torch.testing.assert_close(logits(open_in_peft(stock, export), text), ours, atol=1e-5, rtol=1e-5)


def test_what_cannot_be_is_refused(bases: dict[str, Base]) -> None:
    with pytest.raises(DesignError, match=r"needs the roles key, value and mlp_down.*fused qkv the query"):
        attach(bases["gpt2"], design({"ia3": {}}))
    with pytest.raises(DesignError, match="one ia3, but layer 1 has two"):
        attach(bases["bert"], design({"ia3": {"layers": [0, 1]}}, {"ia3": {"layers": [1]}}))
    with pytest.raises(DesignError, match=r"ia3\.rank is not a known key"):
        design({"ia3": {"rank": 2}})


def test_words_and_serving(bases: dict[str, Base]) -> None:
    summary = bases["bert"].summary
    made = design({"ia3": {"layers": [0]}}, {"ia3": {"layers": [1, 2]}}).resolve(summary)
    assert made == design({"ia3": {}})
    assert made.describe() == "(IA)^3"
    assert design({"ia3": {"layers": [2]}}).describe() == "(IA)^3 in layer 2"
    assert made.serving(summary) == "merge"
    assert design({"ia3": {}}, quantization="nf4").serving(summary) == "peft"
    both = design({"ia3": {}}, {"lora": {"rank": 2}})
    assert both.serving(summary) == "merge"
    assert not both.exports_to_peft(summary)


def write(attached: Attached, folder: Path) -> None:
    for name, content in pack(attached, metadata={}).items():
        (folder / name).write_bytes(content)


def open_in_peft(base: transformers.PreTrainedModel, folder: Path) -> torch.nn.Module:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")
        return peft.PeftModel.from_pretrained(base, folder)
