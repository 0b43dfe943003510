"""The yardstick on models that fuse maps, or that have none for queries."""

from dataclasses import replace

import pytest

from autopeft.errors import DesignError
from autopeft.spec.model import LayerSummary, LinearSummary, ModelSummary
from autopeft.spec.yardstick import DEFAULT_YARDSTICK, fit_yardstick


def with_maps(model: ModelSummary, **shapes: tuple[int, int]) -> ModelSummary:
    """Return a model whose layers have these maps alone, by role."""
    layers = tuple(
        LayerSummary(
            path=layer.path,
            roles={
                role: LinearSummary(path=f"{layer.path}.{role}", in_features=n_in, out_features=n_out)
                for role, (n_in, n_out) in shapes.items()
            },
        )
        for layer in model.layers
    )
    return replace(model, layers=layers)


def test_a_role_stands_for_the_map_that_it_is_fused_into(summary: ModelSummary) -> None:
    fused = with_maps(summary, qkv=(384, 1152), attention_output=(384, 384), mlp_up=(384, 3072), mlp_down=(1536, 384))
    assert fused.fused(["query", "value"]) == ("qkv",)
    assert fused.fused(["mlp_down", "key", "attention_output"]) == ("qkv", "attention_output", "mlp_down")
    assert fused.fused(["mlp_gate"]) == ("mlp_up",), "one map makes both inner activations"
    assert fused.fused(["cross_query"]) == ("cross_query",), "what a model lacks stays, for the check to refuse"
    latent = with_maps(summary, query=(64, 384), kv=(64, 768), attention_output=(384, 384))
    assert latent.fused(["query", "key", "value"]) == ("query", "kv")
    assert summary.fused(["query", "value"]) == ("query", "value")
    assert summary.fused(["mlp_gate"]) == ("mlp_gate",), "an MLP without a gate has none in its first map either"


def test_the_default_yardstick_fits_every_attention(summary: ModelSummary) -> None:
    fused = with_maps(summary, qkv=(384, 1152), attention_output=(384, 384))
    design = fit_yardstick(DEFAULT_YARDSTICK, fused)
    assert design is not None
    assert [block.roles for block in design.blocks] == [("qkv",)]
    unknown = with_maps(summary, mlp_up=(384, 1536), mlp_down=(1536, 384))
    design = fit_yardstick(DEFAULT_YARDSTICK, unknown)
    assert design is not None
    assert [block.roles for block in design.blocks] == ["all"], "a layer without queries gets LoRA on what it has"
    assert fit_yardstick(None, summary) is None


def test_a_yardstick_that_the_model_cannot_have_is_named(summary: ModelSummary) -> None:
    wanted = {"blocks": [{"lora": {"rank": 8, "roles": ["cross_query"]}}]}
    with pytest.raises(
        DesignError, match=r"^the yardstick must be .*BertForSeq.* but lora\.roles must .*; set yardstick"
    ):
        fit_yardstick(wanted, summary)
