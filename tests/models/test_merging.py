"""A merged model is a plain transformers folder with the same logits; what cannot be merged is refused."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from rows import BY_NAME, ROWS
from tiny_models import HEADS, design, inputs_for, logits, perturb

from autopeft.errors import ArtifactError, DesignError
from autopeft.models.artifact import load, pack
from autopeft.models.attach import attach
from autopeft.models.base import Base, load_base
from autopeft.models.merging import check_mergeable, merge
from autopeft.spec.block import FOUR_BIT
from autopeft.spec.design import Design

MODELS = ("bert", "llama", "gpt2", "t5")
NAMES = [row.name for row in ROWS]
# A neighbour of each row among those of other kinds: each technique is inside of one, and around another.
PAIRS = [
    (first, second) for first, second in itertools.pairwise(NAMES) if BY_NAME[first].kind != BY_NAME[second].kind
] + [("ia3", name) for name in ("lora", "shira", "vera", "bitfit", "oft")]
LORA = design({"lora": {"rank": 3}})


def export(base: Base, made: Design, folder: Path, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Write a design with values as after training, and return what it answers."""
    with attach(base, made, seed=5) as attached:
        perturb(attached)
        folder.mkdir(parents=True)
        for name, content in pack(attached, metadata={"task": "text-classification"}).items():
            (folder / name).write_bytes(content)
        return logits(base.model, inputs)


def open_plain(folder: Path, auto_class: str) -> Any:
    """Open a folder as somebody does who has transformers alone."""
    assert not list(folder.glob("adapter*"))
    model, info = getattr(transformers, auto_class).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model


@pytest.mark.parametrize("architecture", MODELS)
@pytest.mark.parametrize("names", [*((name,) for name in NAMES), *PAIRS], ids=str)
def test_what_is_said_to_be_mergeable_merges_with_the_same_logits_and_nothing_else_does(
    bases: dict[str, Base], tmp_path: Path, architecture: str, names: tuple[str, ...]
) -> None:
    base, inputs = bases[architecture], inputs_for(architecture)
    if any(architecture in BY_NAME[name].refused_on for name in names):
        pytest.skip("refused on this architecture")
    made = Design(blocks=tuple(BY_NAME[name].make(base) for name in names))
    if made.serving(base.summary) != "merge":
        with pytest.raises(DesignError, match=r"cannot be merged: \w.* the adapter as it is"):
            check_mergeable(made)
        return
    expected = export(base, made, tmp_path / "adapter", inputs)
    assert merge(tmp_path / "adapter", tmp_path / "merged") == tmp_path / "merged"
    model = open_plain(tmp_path / "merged", HEADS[architecture].auto_class)
    torch.testing.assert_close(logits(model, inputs), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("quantization", FOUR_BIT)
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_a_4_bit_base_is_merged_when_it_may_be_dequantized(
    bases: dict[str, Base], folders: dict[str, str], tmp_path: Path, architecture: str, quantization: Any
) -> None:
    base, inputs = (
        load_base(folders[architecture], HEADS[architecture], quantization=quantization),
        inputs_for(architecture),
    )
    made = Design(blocks=(*LORA.blocks, *design({"norms": {}}).blocks), quantization=quantization)
    expected = export(base, made, tmp_path / "adapter", inputs)
    with pytest.raises(DesignError, match=f"{quantization}.*codes of 4 bits.*dequantize=True"):
        merge(tmp_path / "adapter", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    model = open_plain(
        merge(tmp_path / "adapter", tmp_path / "merged", dequantize=True), HEADS[architecture].auto_class
    )
    torch.testing.assert_close(logits(model, inputs), expected, atol=1e-5, rtol=1e-5)


def test_an_int8_base_quantizes_activations_and_cannot_be_merged(
    folders: dict[str, str], tmp_path: Path, text: dict[str, torch.Tensor]
) -> None:
    base = load_base(folders["bert"], HEADS["bert"], quantization="int8")
    export(base, Design(blocks=LORA.blocks, quantization="int8"), tmp_path / "adapter", text)
    for dequantize in (False, True):
        with pytest.raises(DesignError, match=r"int8 cannot be merged: .*activations"):
            merge(tmp_path / "adapter", tmp_path / "merged", dequantize=dequantize)


def test_a_merged_folder_says_what_it_was_made_from_and_has_the_tokenizer(minilm: str, tmp_path: Path) -> None:
    base = load_base(minilm, HEADS["bert"])
    ids = torch.randint(1000, 2000, (2, 12))
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    expected = export(base, LORA, tmp_path / "adapter", text)
    merged = merge(tmp_path / "adapter", tmp_path / "deep" / "merged", dtype="bfloat16")
    description = json.loads((merged / "autopeft.json").read_text())
    assert description["format"] == "merged"
    assert Design.from_dict(description["design"]) == LORA
    assert description["base_model"]["fingerprint"] == base.summary.fingerprint
    assert description["metadata"] == {"task": "text-classification"}
    card = (merged / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert f"# {LORA.describe()}, merged into {Path(minilm).name}\n" in card
    assert "bfloat16" in card
    assert "AutoModelForSequenceClassification.from_pretrained" in card
    assert str(Path(minilm).parent) not in card, "no path of this machine"
    model, tokenizer = load(merged)
    assert torch.equal(logits(model, text), logits(open_plain(merged, HEADS["bert"].auto_class).float(), text))
    assert tokenizer is not None
    assert model.config.autopeft == description
    with pytest.raises(ArtifactError, match="merged model already"):
        merge(merged, tmp_path / "again")
    assert transformers.AutoTokenizer.from_pretrained(merged)("good film").input_ids == [101, 2204, 2143, 102]
    model = open_plain(merged, HEADS["bert"].auto_class)
    assert model.dtype == torch.bfloat16
    assert model.config.id2label == {0: "negative", 1: "positive"}
    answer = logits(model, text).float()
    assert 0 < (answer - expected).abs().max() < 0.1 * expected.abs().max()
    assert sorted(path.name for path in merged.parent.iterdir()) == ["merged"]


def test_nothing_is_overwritten_and_nothing_half_written(
    bases: dict[str, Base], folders: dict[str, str], tmp_path: Path, text: dict[str, torch.Tensor]
) -> None:
    export(bases["bert"], LORA, tmp_path / "adapter", text)
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="new or an empty folder"):
        merge(tmp_path / "adapter", full)
    with pytest.raises(ArtifactError, match="new or an empty folder"):
        merge(tmp_path / "adapter", full / "thesis.txt")
    with pytest.raises(ArtifactError, match="other weights"):
        merge(tmp_path / "adapter", tmp_path / "merged", base_model=folders["roberta"])
    with pytest.raises(ArtifactError, match="dtype"):
        merge(tmp_path / "adapter", tmp_path / "merged", dtype="int3")
    damaged = tmp_path / "damaged"
    shutil.copytree(tmp_path / "adapter", damaged)
    (damaged / "adapter_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match="damaged"):
        merge(damaged, tmp_path / "merged")
    assert (full / "thesis.txt").read_text() == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "damaged", "full"]
    (tmp_path / "merged").mkdir()
    merge(tmp_path / "adapter", tmp_path / "merged")
    assert (tmp_path / "merged" / "model.safetensors").is_file()
