"""A space on a model that cannot have all of it: what may be left out is, what may not is refused."""

from pathlib import Path
from typing import Any

import pytest
import transformers

from autopeft.errors import SpaceError
from autopeft.models.base import build_meta
from autopeft.spec.model import Head, ModelSummary
from autopeft.spec.space import SearchSpace
from autopeft.spec.unsupported import leave_out_unsupported

QUANTIZED = {"blocks": {"lora": {"rank": [1, 2], "roles": [["query", "value"]]}}}
LLAMA = transformers.LlamaConfig(
    hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=256, pad_token_id=1, vocab_size=99
)
GPT2 = transformers.GPT2Config(n_embd=128, n_layer=4, n_head=4, vocab_size=99, pad_token_id=1)
BERT = transformers.BertConfig(
    hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=256, vocab_size=99
)


def summary(config: Any, folder: Path) -> ModelSummary:
    config.save_pretrained(folder)
    head = Head(auto_class="AutoModelForSequenceClassification", labels=("negative", "positive"))
    return build_meta(str(folder), head, needs_weights=False).summary


def test_a_technique_that_the_architecture_lacks_is_left_out_with_a_note(tmp_path: Path) -> None:
    model, space = summary(LLAMA, tmp_path), SearchSpace.load("hybrid-full")
    with pytest.raises(SpaceError, match=r"blocks\.bitfit\.use: bitfit needs bias terms"):
        space.check(model)
    fitted, notes = leave_out_unsupported(space, model)
    fitted.check(model)
    assert {entry.name for entry in space.blocks} - {entry.name for entry in fitted.blocks} == {"bitfit"}
    assert set(space.any_of) - set(fitted.any_of) == {"bitfit"}
    assert notes == (
        "bitfit is left out of the space hybrid-full: bitfit needs bias terms, but the linear maps of "
        "LlamaForSequenceClassification have none",
    )
    assert fitted.size(model) < space.size(model)
    assert fitted.fingerprint == space.fingerprint, "the same file on the same model is the same study"


def test_what_a_space_cannot_do_without_is_refused(tmp_path: Path) -> None:
    """S4 has BitFit in fixed groups: without it, it would be another design."""
    model = summary(LLAMA, tmp_path)
    fitted, notes = leave_out_unsupported(SearchSpace.load("s4"), model)
    assert not notes
    with pytest.raises(SpaceError, match=r"s4\.yaml, line \d+: blocks\.bitfit\.use: bitfit needs .*; take norms or"):
        fitted.check(model)


def test_nothing_is_left_out_where_nothing_would_be_left(tmp_path: Path) -> None:
    model = summary(LLAMA, tmp_path)
    space = SearchSpace.from_dict(
        {
            "blocks": {"bitfit": {"use": [True, False]}, "lora": {"use": [True, False], "rank": [1]}},
            "require": {"any_of": ["bitfit"]},
        }
    )
    assert leave_out_unsupported(space, model) == (space, ())
    with pytest.raises(SpaceError, match="bitfit needs bias terms"):
        space.check(model)


def test_a_size_that_does_not_fit_is_no_reason_to_leave_a_technique_out(tmp_path: Path) -> None:
    model = summary(BERT, tmp_path)
    space = SearchSpace.from_dict(
        {"blocks": {"adapter": {"use": [True, False], "size": [4, 999]}, "lora": {"rank": [1]}}}
    )
    assert leave_out_unsupported(space, model) == (space, ())
    with pytest.raises(SpaceError, match="size=999"):
        space.check(model)


def test_layers_that_others_share_stay(tmp_path: Path) -> None:
    model = summary(LLAMA, tmp_path)
    space = SearchSpace.from_dict(
        {
            "blocks": {
                "bitfit": {"use": [True, False], "layers": {"any": "per_layer"}},
                "lora": {"rank": [1], "layers": {"same_as": "bitfit"}},
            }
        }
    )
    assert leave_out_unsupported(space, model) == (space, ())


def test_one_map_for_query_key_and_value_takes_the_roles_of_each(tmp_path: Path) -> None:
    model, space = summary(GPT2, tmp_path), SearchSpace.load("hybrid")
    with pytest.raises(SpaceError, match=r"blocks\.ia3\.use: .*in a fused qkv"):
        space.check(model)
    fitted, notes = leave_out_unsupported(space, model)
    fitted.check(model)
    (lora,) = (entry for entry in fitted.blocks if entry.kind == "lora")
    assert lora.fields["roles"].extremes(4) == (("qkv",), ("qkv", "attention_output"), "all")
    assert [note.split(":")[0] for note in notes] == ["roles of lora", "ia3 is left out of the space hybrid"]
    for seed in range(20):
        fitted.sample(model, seed).design.check(model)
    assert leave_out_unsupported(SearchSpace.load("hybrid"), summary(BERT, tmp_path / "b"))[1] == ()


def test_roles_that_a_model_has_no_maps_for_are_left_out(tmp_path: Path) -> None:
    """XLM keeps its attention in another list than its MLPs, which are what is found."""
    config = transformers.XLMConfig(emb_dim=32, n_layers=2, n_heads=4, n_words=50)
    model = summary(config, tmp_path)
    assert model.roles == ("mlp_up", "mlp_down")
    values = {
        "blocks": {
            "lora": {"rank": [1, 2], "roles": [["query", "value"], ["mlp_up"], "all"]},
            "adapter": {"size": [4], "at": [["mlp"], ["attention", "mlp"]]},
        }
    }
    fitted, notes = leave_out_unsupported(SearchSpace.from_dict(values), model)
    fitted.check(model)
    assert fitted.blocks[0].fields["roles"].extremes(2) == (("mlp_up",), "all")
    assert notes[0] == "roles of lora: those that XLMForSequenceClassification has no maps for are left out"
    assert fitted.blocks[1].fields["at"].extremes(2) == (("mlp",),)
    assert notes[1].startswith("adapter.at is narrowed: a serial adapter at attention needs a layer with the role att")


def test_a_storage_that_the_maps_cannot_have_is_left_out(tmp_path: Path) -> None:
    """bitsandbytes leaves linear maps of an architecture's own class as they are: Falcon's."""
    config = transformers.FalconConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=50, new_decoder_architecture=False
    )
    model = summary(config, tmp_path)
    fitted, notes = leave_out_unsupported(SearchSpace.from_dict({**QUANTIZED, "quantization": ["none", "nf4"]}), model)
    assert fitted.quantization.extremes(2) == ("none",)
    assert any("nf4 is left out" in note and "FalconLinear" in note for note in notes)
    only, _ = leave_out_unsupported(SearchSpace.from_dict({**QUANTIZED, "quantization": "nf4"}), model)
    with pytest.raises(SpaceError, match=r"quantization: quantization='nf4' needs plain linear maps, .*FalconLinear"):
        only.check(model)
