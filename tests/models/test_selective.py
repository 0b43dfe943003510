"""BitFit, norm tuning and full fine-tuning: exactly the right parameters of the base train, each in one block."""

import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from tiny_models import ARCHITECTURES, HEADS, LANGUAGE_HEAD, content, design, inputs_for, logits, perturb, save

from autopeft.errors import DesignError
from autopeft.models.artifact import pack
from autopeft.models.attach import attach
from autopeft.models.base import Base, load_base
from autopeft.models.quantization import dequantized_weights
from autopeft.spec.block import QUANTIZED
from autopeft.spec.design import Design
from autopeft.spec.model import ModelSummary


def trained(base: Base, *blocks: dict[str, Any]) -> set[str]:
    """Return the paths of what trains besides the head."""
    with attach(base, design(*blocks)) as attached:
        head = {id(parameter) for parameter in attached.groups["head"]}
        return {n for n, p in base.model.named_parameters() if p.requires_grad and id(p) not in head}


def test_bitfit_of_the_paper_on_bert(bases: dict[str, Base]) -> None:
    """Ben Zaken et al., section 3: the biases of queries, keys, values, both dense maps of each sublayer, and norms."""
    layer = "bert.encoder.layer.1"
    everything = {
        f"{layer}.{name}.bias"
        for name in (
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
            "attention.output.LayerNorm",
            "intermediate.dense",
            "output.dense",
            "output.LayerNorm",
        )
    }
    assert trained(bases["bert"], {"bitfit": {"layers": [1]}}) == everything
    half = {"bitfit": {"layers": [1], "roles": ["query", "mlp_up"], "norms": False}}
    assert trained(bases["bert"], half) == {f"{layer}.attention.self.query.bias", f"{layer}.intermediate.dense.bias"}


def test_bitfit_moves_each_bias_of_the_equations_and_nothing_else(bases: dict[str, Base]) -> None:
    """Ben Zaken et al.: Q(x) = W_q x + b_q and its kin, LN(x) = g (x - mean) / deviation + b, and each b trains."""
    base, inputs = bases["bert"], inputs_for("bert")
    original = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    with attach(base, design({"bitfit": {"layers": [1]}})) as attached:
        perturb(attached, only=attached.groups["bitfit"])
        biases = {name: tensor for name, tensor in attached.state().items() if not name.startswith("classifier")}
        modules = {name.rpartition(".")[0] for name in biases if ".encoder." in name}
        assert len(modules) == 8
        handles = [
            base.model.get_submodule(path).register_forward_hook(
                lambda _m, args, out, path=path: seen.update({path: (args[0], out)})
            )
            for path in modules
        ]
        logits(base.model, inputs)
        for handle in handles:
            handle.remove()
    for path, (read, written) in seen.items():
        weight, bias = original[f"{path}.weight"], biases[f"{path}.bias"]
        assert not torch.equal(bias, original[f"{path}.bias"])
        if weight.dim() == 2:
            expected = read @ weight.T + bias
        else:
            spread = (read.var(-1, correction=0, keepdim=True) + base.model.config.layer_norm_eps).sqrt()
            expected = weight * (read - read.mean(-1, keepdim=True)) / spread + bias
        torch.testing.assert_close(written, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_norms_are_what_transformers_calls_so(bases: dict[str, Base], architecture: str) -> None:
    """Found without their names; the names are the oracle."""
    base = bases[architecture]
    named = {path for path, module in base.model.named_modules() if "norm" in type(module).__name__.lower()}
    found = {name.rpartition(".")[0] for name in trained(base, {"norms": {"outer": True}})}
    assert found == named


def test_norms_open_in_peft_alone(bases: dict[str, Base], folders: dict[str, str], tmp_path: Path) -> None:
    for architecture in ("bert", "llama", "gpt2"):
        base, inputs = bases[architecture], inputs_for(architecture)
        folder = tmp_path / architecture
        folder.mkdir()
        with attach(base, design({"norms": {"layers": [0, 2], "outer": True}})) as attached:
            perturb(attached)
            for name, written in pack(attached, metadata={}).items():
                (folder / name).write_bytes(written)
            expected = logits(base.model, inputs)
        torch.manual_seed(99)
        kind = getattr(transformers, HEADS[architecture].auto_class)
        plain = kind.from_pretrained(folders[architecture], num_labels=2, pad_token_id=1)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")
            warnings.filterwarnings("ignore", message="Unsupported layer type")  # peft's word on every norm
            opened = peft.PeftModel.from_pretrained(plain, folder)
        torch.testing.assert_close(logits(opened, inputs), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["bert", "llama", "gpt2", "dinov2"])
def test_the_whole_model_trains_in_full(bases: dict[str, Base], architecture: str) -> None:
    base = bases[architecture]
    whole = design({"full": {"embeddings": True}})
    with attach(base, whole) as attached:
        assert attached.n_trainable == base.summary.n_parameters + base.summary.n_head_parameters
        assert all(parameter.requires_grad for parameter in base.model.parameters())


def test_weights_that_the_model_shares_stay_shared(tmp_path: Path) -> None:
    base = load_base(save("gpt2", tmp_path, "AutoModelForCausalLM"), LANGUAGE_HEAD)
    before, original = content(base.model), base.model.lm_head.weight
    assert original is base.model.transformer.wte.weight
    with attach(base, design({"full": {"embeddings": True}})) as attached:
        assert base.model.lm_head.weight is base.model.transformer.wte.weight is not original
        assert attached.n_trainable == base.summary.n_parameters
        perturb(attached)
    assert base.model.lm_head.weight is base.model.transformer.wte.weight is original
    assert content(base.model) == before
    base.verify()


@pytest.mark.parametrize("quantization", [q for q in QUANTIZED if q != "int8"])
def test_biases_over_a_4_bit_base_train_in_fp32_also_where_products_are_bf16(minilm: str, quantization: Any) -> None:
    """A quantized layer would cast its bias for good, and small updates would be lost."""
    base = load_base(minilm, HEADS["bert"], quantization=quantization, precision="bf16")
    ids = torch.randint(1000, 2000, (4, 8), generator=torch.Generator().manual_seed(0))
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    before = content(base.model)
    with attach(base, Design(blocks=design({"bitfit": {"layers": [5]}}).blocks, quantization=quantization)) as attached:
        biases = attached.groups["bitfit"]
        for _ in range(2):  # the second time after an evaluation
            base.model.train().zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                base.model(**text, labels=torch.tensor([0, 1, 1, 0])).loss.backward()
            assert all(bias.grad is not None and bias.grad.abs().sum() > 0 for bias in biases)
            logits(base.model, text)
        assert {bias.dtype for bias in biases} == {torch.float32}
    assert content(base.model) == before
    base.verify()


def test_the_gradient_of_a_bias_over_a_quantized_base_is_that_over_its_dequantized_weights(minilm: str) -> None:
    stored, plain = (load_base(minilm, HEADS["bert"], quantization=q) for q in ("nf4-dq", "none"))
    with torch.no_grad():
        for path, weight in dequantized_weights(stored.model):
            plain.model.get_submodule(path).weight.copy_(weight)
    ids = torch.randint(1000, 2000, (4, 8), generator=torch.Generator().manual_seed(0))
    gradients = []
    for base in (stored, plain):
        made = Design(blocks=design({"bitfit": {"layers": [3, 5]}}).blocks, quantization=base.quantization)
        with attach(base, made) as attached:
            base.model.eval()(input_ids=ids, labels=torch.tensor([0, 1, 1, 0])).loss.backward()
            gradients.append([bias.grad for bias in attached.groups["bitfit"]])
    for over_codes, over_weights in zip(*gradients, strict=True):
        torch.testing.assert_close(over_codes, over_weights, atol=1e-6, rtol=1e-4)


OVERLAPS = [
    ([{"full": {"layers": [1]}}, {"bitfit": {}}], "both train .*layer.1"),
    ([{"full": {"layers": [1]}}, {"norms": {"layers": [0, 1]}}], "both train .*layer.1"),
    ([{"bitfit": {"layers": [0]}}, {"norms": {"layers": [0]}}], "both train .*LayerNorm.bias"),
    (
        [{"full": {"layers": [0], "embeddings": True}}, {"norms": {"layers": [1], "outer": True}}],
        "embeddings.LayerNorm",
    ),
    ([{"full": {"layers": [0], "embeddings": True}}, {"full": {"layers": [1], "embeddings": True}}], "both train"),
    ([{"bitfit": {"layers": [0]}}, {"bitfit": {"layers": [0], "norms": False}}], "both train"),
]


@pytest.mark.parametrize(("blocks", "message"), OVERLAPS, ids=str)
def test_a_parameter_trains_in_one_block(bases: dict[str, Base], blocks: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DesignError, match=f"{message}.*give them different layers"):
        design(*blocks).check(bases["bert"].summary)


def test_what_does_not_overlap_goes_together(bases: dict[str, Base]) -> None:
    summary = bases["bert"].summary
    design({"bitfit": {"norms": False}}, {"norms": {"outer": True}}).check(summary)
    design({"full": {"layers": [2]}}, {"norms": {"layers": [0], "outer": True}}, {"lora": {"rank": 2}}).check(summary)


def test_refusals_say_the_reason_and_the_way_out(bases: dict[str, Base]) -> None:
    llama, bert = bases["llama"].summary, bases["bert"].summary
    with pytest.raises(DesignError, match=r"Llama.* have none; take norms or ia3"):
        design({"bitfit": {}}).check(llama)
    with pytest.raises(DesignError, match=r"bitfit.roles must be roles of maps that have a bias .*query.*'mlp_gate'"):
        design({"bitfit": {"roles": ["mlp_gate"]}}).check(bert)
    for quantization in QUANTIZED:
        with pytest.raises(DesignError, match=f"full fine-tuning cannot go with {quantization}: quantized weights"):
            design({"full": {}}, quantization=quantization).check(bert)


def test_equal_choices_are_one_design(bases: dict[str, Base]) -> None:
    bert, whisper = bases["bert"].summary, bases["whisper"].summary
    every = ["query", "key", "value", "attention_output", "mlp_up", "mlp_down"]
    assert design({"bitfit": {"roles": every, "layers": [0, 1, 2]}}).resolve(bert) == design({"bitfit": {}})
    assert design({"bitfit": {"roles": whisper.roles}}).resolve(whisper) == design({"bitfit": {}}).resolve(whisper)


def test_a_summary_survives_json(bases: dict[str, Base]) -> None:
    for base in bases.values():
        assert ModelSummary.from_dict(base.summary.to_dict()) == base.summary
