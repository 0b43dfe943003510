"""What is read of architectures that differ from a plain transformer."""

from pathlib import Path

import pytest

from autopeft.models.base import build_meta
from autopeft.spec.model import ModelSummary
from autopeft.tasks.base import find_task
from tests.architectures import tiny


def summary(task: str, model_type: str, folder: Path) -> ModelSummary:
    tiny.make_config(task, model_type).save_pretrained(folder)
    head = find_task(task).head(("a", "b") if task == "text-classification" else ())
    return build_meta(str(folder), head, kernel="eager", needs_weights=False).summary


def test_maps_of_state_spaces_have_no_role(tmp_path: Path) -> None:
    """Their kernels multiply by the weights themselves: what is attached to a map would be passed by."""
    model = summary("causal-lm", "jamba", tmp_path)
    assert model.n_layers == 2, "layers of two classes are one stack"
    assert not any(".mamba." in linear.path for layer in model.layers for linear in layer.roles.values())
    assert {"query", "value"} <= set(model.roles)
    assert not model.has_attention_interface, "a prefix cannot be in a layer without attention"


def test_latent_attention_has_a_map_for_keys_and_values(tmp_path: Path) -> None:
    model = summary("causal-lm", "deepseek_v3", tmp_path)
    assert [linear.path.rpartition(".")[2] for linear in map(model.layers[0].roles.__getitem__, ("query", "kv"))] == [
        "q_b_proj",
        "kv_b_proj",
    ]
    assert model.fused(["query", "value"]) == ("query", "kv")


@pytest.mark.parametrize(("model_type", "n_heads"), [("gpt_bigcode", 1), ("falcon", 1), ("dbrx", 2), ("llama", 2)])
def test_heads_of_keys_and_values_are_counted(model_type: str, n_heads: int, tmp_path: Path) -> None:
    assert summary("causal-lm", model_type, tmp_path).n_key_value_heads == n_heads


@pytest.mark.parametrize("model_type", ["phi3", "glm", "modernbert-decoder"])
def test_one_map_makes_both_inner_activations(model_type: str, tmp_path: Path) -> None:
    assert summary("causal-lm", model_type, tmp_path).fused(["mlp_gate", "mlp_down"]) == ("mlp_up", "mlp_down")


def test_a_model_that_reads_images_too_is_searched_where_it_reads_text(tmp_path: Path) -> None:
    model = summary("text-classification", "qwen3_5", tmp_path)
    assert all("visual" not in layer.path for layer in model.layers)
