"""Adapters of mixtures of experts: what trains is what is exported, loaded and merged."""

from pathlib import Path

import pytest
import torch
import transformers
from tiny_models import LANGUAGE_HEAD, LLAMA_LIKE, design, inputs_for, logits, perturb

from autopeft.models import artifact, merging
from autopeft.models.attach import attach
from autopeft.models.base import Base, load_base

EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
MODELS = {
    "mixtral": lambda: transformers.MixtralConfig(**LLAMA_LIKE, num_local_experts=4),
    # the first layer is dense: its maps have the names that experts had before transformers 5
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **LLAMA_LIKE, head_dim=8, num_experts=4, mlp_only_layers=[0], **EXPERTS
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def experts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(MODELS[request.param]())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    model.save_pretrained(folder)
    return load_base(str(folder), LANGUAGE_HEAD, kernel="eager")


@pytest.mark.parametrize("roles", [["query", "value"], "all"])
def test_an_adapter_of_a_mixture_is_exported_loaded_and_merged(experts: Base, roles: object, tmp_path: Path) -> None:
    text = inputs_for("llama")
    made = design({"lora": {"rank": 2, "roles": roles}})
    before = logits(experts.model, text)
    with attach(experts, made) as attached:
        wrapped = {path for path, module in experts.model.named_modules() if hasattr(module, "lora_A")}
        block = made.blocks[0]
        assert wrapped == {linear.path for linear in block.targets(experts.summary)}, "no expert in a dense map's place"
        perturb(attached)
        expected = logits(experts.model, text)
        adapter = tmp_path / "adapter"
        adapter.mkdir()
        for name, content in artifact.pack(attached, metadata={}).items():
            (adapter / name).write_bytes(content)
    assert torch.equal(logits(experts.model, text), before)
    assert (expected - before).abs().max() > 0.1
    opened, _ = artifact.load(adapter, None, None, None)
    torch.testing.assert_close(logits(opened, text), expected, rtol=1e-4, atol=1e-4)
    merging.merge(adapter, tmp_path / "merged")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", attn_implementation="eager")
    torch.testing.assert_close(logits(merged, text), expected, rtol=1e-4, atol=1e-4)


def test_a_dense_map_named_like_an_expert_is_not_for_stock_peft(experts: Base) -> None:
    """peft takes `mlp.down_proj` of such a model for its experts, and would train those."""
    has_dense = "mlp_down" in experts.summary.roles
    assert design({"lora": {"rank": 2, "roles": "all"}}).exports_to_peft(experts.summary) is not has_dense
    assert design({"lora": {"rank": 2, "roles": ["query", "value"]}}).exports_to_peft(experts.summary)
