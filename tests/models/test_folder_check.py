"""Folders that are no checkpoint to train on: each is refused in one line that says what it is, and the way out."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

from autopeft.errors import ModelError
from autopeft.models.base import build_meta
from autopeft.models.model_files import locate, weight_files
from autopeft.spec.model import Head

SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 40,
    "max_position_embeddings": 16,
}
HEAD = Head(auto_class="AutoModelForSequenceClassification", labels=("a", "b"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a tiny BERT, with blanks and an umlaut in its name."""
    made = tmp_path / "ein Modell ä"
    BertModel(BertConfig(**SMALL)).save_pretrained(made)
    return made


def change(folder: Path, file: str = "config.json", **values: Any) -> None:
    path = folder / file
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, **values}))


def refuse(folder: Path, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        build_meta(str(folder), HEAD)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "stored"),
    [
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
            r"in 4 bits by bitsandbytes \(nf4\)",
        ),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "in 8 bits by bitsandbytes"),
        ({"quant_method": "gptq", "bits": 4}, "in 4 bits by gptq"),
        ({"quant_method": "awq", "bits": 4}, "in 4 bits by awq"),
        ({"quant_method": "fp8"}, "in 8 bits by fp8"),
        ({"quant_method": "mxfp4"}, "in 4 bits by mxfp4"),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 8}}}},
            "in 8 bits by compressed-tensors",
        ),
        ({"quant_method": "quanto", "weights": "int4"}, "in 4 bits by quanto"),
        ({"quant_method": "newest"}, "quantized by newest"),
    ],
)
def test_a_quantized_checkpoint_is_refused(folder: Path, config: dict[str, Any], stored: str) -> None:
    change(folder, quantization_config=config)
    refuse(folder, f"is stored {stored}; give the model that it was made from, and quantization: nf4")
    (folder / "model.safetensors").unlink()
    locate(str(folder), needs_weights=False)  # its costs can be estimated


def test_an_index_beside_a_whole_file_is_stale(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "model-00001-of-00002.safetensors"}}')
    (folder / "pytorch_model.bin.index.json").write_text('{"weight_map": {"x": "pytorch_model-00001-of-00002.bin"}}')
    assert weight_files(folder) == [folder / "model.safetensors"]
    assert build_meta(str(folder), HEAD).summary.n_layers == 2


def test_a_shard_that_is_missing_is_named(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": names[0], "y": names[1]}}))
    refuse(folder, r"lacks model-00002-of-00002.safetensors; fetch the model again")
    (folder / names[1]).symlink_to("/nowhere/blob")
    refuse(folder, r"lacks model-00002-of-00002.safetensors, a link to /nowhere/blob, where nothing is; fetch")


@pytest.mark.parametrize(
    ("file", "way"),
    [
        ("pytorch_model.bin", "it has pytorch_model.bin: a pickle can run any code, .*save_pretrained"),
        ("model.Q4_K_M.gguf", "it has model.Q4_K_M.gguf: .*take the model that it was made from"),
        ("model.onnx", "it has model.onnx: take the original PyTorch model"),
        ("consolidated.safetensors", "it has consolidated.safetensors: save the model with save_pretrained"),
        ("training_args.bin", "give a folder that save_pretrained wrote"),
    ],
)
def test_weights_in_another_format_are_named(folder: Path, file: str, way: str) -> None:
    (folder / "model.safetensors").rename(folder / file)
    refuse(folder, f"must have weights in model.safetensors, but .* has none; {way}")
    (folder / "config.json").unlink()
    refuse(folder, f"must have a config.json, but .* has none; {way}")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", r"a pointer of Git LFS \(git lfs pull"),
        (b"", "is not: "),
        (None, "is not: "),
    ],
)
def test_a_file_that_is_not_whole_is_named(folder: Path, content: bytes | None, why: str) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100] if content is None else content)
    refuse(folder, f"must be whole, but model.safetensors of .*{why}.*; fetch it again")


def test_an_adapter_is_no_base_model(folder: Path) -> None:
    change(folder, "adapter_config.json", base_model_name_or_path="org/base", peft_type="LORA")
    refuse(folder, "is an adapter's folder: it holds an adapter: give its base model, 'org/base', or merge")
    (folder / "config.json").unlink()
    refuse(folder, "must have a config.json, but .* has none; it holds an adapter: give its base model, 'org/base'")
    (folder / "adapter_config.json").unlink()
    change(folder, "autopeft.json", base_model={"name": "org/other"})
    refuse(folder, "it holds an adapter: give its base model, 'org/other'")


def test_the_folder_inside_that_holds_the_model_is_named(folder: Path, tmp_path: Path) -> None:
    folder.rename(tmp_path / "0_Transformer")
    (tmp_path / "modules.json").write_text("[]")
    refuse(tmp_path, r"its folder '0_Transformer' has one: give '.*0_Transformer'")


def test_a_file_is_no_folder(folder: Path) -> None:
    refuse(
        folder / "model.safetensors", "must be a folder or a hub id, but .* is a file; give the folder that it is in"
    )


def test_a_link_to_nothing_is_named(folder: Path) -> None:
    os.replace(folder / "config.json", folder / "moved.json")
    (folder / "config.json").symlink_to("../blobs/1234")
    refuse(folder, r"has none; it is a link to \.\./blobs/1234, where nothing is: fetch the model again")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "bert9"}, "cannot be loaded .*bert9"),
        ({"model_type": None}, "cannot be loaded"),
        (
            {"hidden_size": 32},
            r"must have the shapes of config.json, but in .* has \[.*16.*\] and config.json says \[.*32",
        ),
        (
            {"num_hidden_layers": 1},
            r"must use every weight of the layers, but .*leaves out 16 of .*, such as .*layer\.1\.",
        ),
        ({"num_hidden_layers": 3}, r"lacks 16, such as bert.encoder.layer.2"),
    ],
)
def test_weights_that_are_not_those_of_the_configuration_are_named(
    folder: Path, config: dict[str, Any], message: str
) -> None:
    change(folder, **config)
    refuse(folder, message)


def test_biases_that_the_architecture_drops_are_named(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(LlamaConfig(**SMALL, attention_bias=True)).save_pretrained(tmp_path)
    change(tmp_path, attention_bias=False)
    with pytest.raises(ModelError, match=r"leaves out 8 of .*, such as model.layers.0.self_attn.k_proj.bias"):
        build_meta(str(tmp_path), Head(auto_class="AutoModelForCausalLM"))


def test_half_precision_and_other_heads_load(tmp_path: Path) -> None:
    from transformers import BertForMaskedLM

    BertForMaskedLM(BertConfig(**SMALL)).to(torch.float16).save_pretrained(tmp_path)
    base = build_meta(str(tmp_path), HEAD)
    assert {parameter.dtype for parameter in base.model.parameters()} == {torch.float32}
    assert "classifier" in base.summary.new_modules


def test_a_name_that_no_hub_gives_is_refused_in_one_line() -> None:
    with pytest.raises(
        ModelError, match=r"'org/gated-model' is no folder here.*HF_HUB_OFFLINE and your token"
    ) as caught:
        build_meta("org/gated-model", HEAD)
    assert "\n" not in str(caught.value)


def test_a_file_of_other_tensors_lacks_what_the_model_needs(folder: Path) -> None:
    save_file({"x": torch.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"})
    refuse(folder, "must have every weight of the base model, but .* lacks")
