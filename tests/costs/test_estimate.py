"""What `autopeft.estimate` answers, against models with weights; and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from autopeft.costs.estimate import estimate
from autopeft.errors import DesignError, ModelError
from autopeft.spec.cost import Estimate

LORA = {"blocks": [{"lora": {"rank": 2, "roles": ["query"]}}]}


def test_a_configuration_is_enough(llama_config: str):
    answer = estimate(llama_config, LORA, batch_size=2, sequence_length=16)
    assert answer.head_params == 64 * 2
    assert answer.trainable_params == 2 * 2 * (64 + 64) + answer.head_params
    model = transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained(llama_config))
    frozen = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    assert answer.base_bytes == frozen
    assert answer.base_params == sum(parameter.numel() for parameter in model.parameters())


def test_folder_configuration_and_model_are_the_same_model(llama_config: str):
    config = transformers.AutoConfig.from_pretrained(llama_config)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    settings: dict[str, Any] = {"task": "causal-lm", "sequence_length": 16}
    answers = [estimate(given, LORA, **settings) for given in (llama_config, Path(llama_config), config, model)]
    assert len({(str(answer), answer.peak_memory) for answer in answers}) == 1


def test_what_the_design_adds_at_inference_is_that_of_its_own_maps(llama_config: str):
    answer = estimate(llama_config, LORA, batch_size=2, sequence_length=16)
    down_and_up = 2 * 2 * (64 * 2 + 2 * 64)  # layers x multiply and add
    assert answer.inference_flops - answer.base_inference_flops == down_and_up * answer.n_tokens
    assert answer.n_tokens == 16


def test_the_table_says_every_cost(llama_config: str):
    answer = estimate(llama_config, LORA, batch_size=2, sequence_length=16)
    lines = {line[:22].strip(): line for line in str(answer).splitlines()}
    assert "128 of them in the head" in lines["trainable parameters"]
    assert f"{answer.trainable_params / answer.base_params:.2%} of the base's" in lines["trainable parameters"]
    assert {"base", "adapters and head", "optimizer states", "activations", "adapter on disk"} <= lines.keys()
    assert "none once merged" in lines["inference"]
    assert "reserved memory" not in lines, "a CPU reserves nothing"
    assert answer.peak_memory == sum(answer.at_peak.values())


def test_an_estimate_of_a_study_has_a_table_too():
    known = {"trainable_params": 5, "head_params": 0, "adapter_bytes": 20, "base_bytes": 100, "peak_memory": 300}
    plain = Estimate(**known, train_flops=9, inference_flops=3, serving="peft", version="x")
    assert "of the base's" not in str(plain)
    assert "over the base alone" not in str(plain)
    measured = Estimate(
        **known, train_flops=9, inference_flops=3, serving="peft", version="x", reserved_memory=2**20, step_seconds=0.25
    )
    assert "1.0 MiB  what CUDA's caching allocator holds" in str(measured)
    assert "250 ms" in str(measured)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number >= 1, but got batch_size=0"),
        ({"batch_size": 2.5}, "batch_size must be a whole number >= 1, but got batch_size=2.5"),
        (
            {"sequence_length": 65},
            "sequence_length <= n_positions must hold, but got sequence_length=65, n_positions=64; shorten",
        ),
        ({"dtype": "float16"}, "dtype must be one of float32, bfloat16, but got 'float16'"),
        (
            {"optimizer": "adam"},
            "optimizer must be one of adamw, adamw_8bit, sgd, but got 'adam'; did you mean 'adamw'",
        ),
        ({"device": "mps"}, "device must be one of cpu, cuda, but got 'mps'"),
        ({"kernel": "flash"}, "kernel must be one of sdpa, eager, but got 'flash'"),
        ({"task": "causal-ml"}, "task must be one of causal-lm, text-classification, but got 'causal-ml'"),
        ({"design": {"blocks": [{"lora": {"rank": 100}}]}}, "rank <= hidden_size"),
        ({"design": {"blocks": [{"lara": {"rank": 1}}]}}, "lara"),
        ({"design": {"blocks": [{"prompt": {"length": 49}}]}}, "prompt.length + longest input <= n_positions"),
    ],
)
def test_what_cannot_be_estimated_is_refused(llama_config: str, changes: dict[str, object], message: str):
    with pytest.raises(DesignError) as refused:
        estimate(llama_config, **{"design": {"blocks": []}, "sequence_length": 16, **changes})
    assert message in str(refused.value)


def test_a_model_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(ModelError, match=r"'nobody/nothing' is no folder here and the hub says"):
        estimate("nobody/nothing", LORA)
    with pytest.raises(ModelError, match=r"must have a config.json"):
        estimate(str(tmp_path), LORA)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    with pytest.raises(ModelError, match="no-such-model"):
        estimate(str(tmp_path), LORA)
    with pytest.raises(ModelError, match=r"a hub id, a local folder, a transformers configuration, .* but got int"):
        estimate(3, LORA)


def test_an_architecture_that_is_not_understood_says_what_it_saw():
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    with pytest.raises(
        ModelError, match=r"must build the model as .*, but ResNetConfig is 'resnet', which it builds as no"
    ):
        estimate(config, LORA)
    funnel = transformers.FunnelConfig(d_model=16, n_head=2, d_head=8, d_inner=16, block_sizes=[1, 1], vocab_size=50)
    with pytest.raises(ModelError, match=r"a known role, but FunnelForSequenceClassification has 0.attention.q_head"):
        estimate(funnel, LORA)
    mamba = transformers.MambaConfig(hidden_size=16, num_hidden_layers=2, state_size=4, vocab_size=50)
    with pytest.raises(
        ModelError, match=r"must have attention or an MLP, but those of MambaForCausalLM have state spaces alone"
    ):
        estimate(mamba, LORA, task="causal-lm")
