"""The spaces that ship: each loads, is legal on the models that it is for, and is as large as its comment says."""

import random
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import transformers

from autopeft.models.base import build_meta
from autopeft.spec.block import block_kinds
from autopeft.spec.design import Design
from autopeft.spec.learning_rates import HEAD, prior
from autopeft.spec.model import Head, ModelSummary
from autopeft.spec.space import RandomChooser, SearchSpace
from autopeft.spec.space_file import shipped_spaces

TEXT = Head(auto_class="AutoModelForSequenceClassification", labels=("negative", "positive"))
IMAGES = Head(auto_class="AutoModelForImageClassification", labels=TEXT.labels)
SMALL: dict[str, Any] = {
    "num_hidden_layers": 6,
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_attention_heads": 12,
}
CONFIGS: dict[str, tuple[Any, Head]] = {
    "MiniLM": (transformers.BertConfig(**SMALL), TEXT),
    "BERT-base": (transformers.BertConfig(), TEXT),
    "ViT-B": (transformers.ViTConfig(), IMAGES),
}
README = (Path(__file__).parents[2] / "search_spaces" / "README.md").read_text(encoding="utf-8")
NEEDS_MORE = {"deep_prompt", "fusion"}
"""Not in hybrid-full: for vision models alone, and of earlier studies' adapters."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelSummary]:
    """Return the summaries of real architectures, without weights."""
    found = {}
    for name, (config, head) in CONFIGS.items():
        folder = tmp_path_factory.mktemp(name)
        config.save_pretrained(folder)
        found[name] = build_meta(str(folder), head, needs_weights=False).summary
    return found


def fitting(name: str) -> str:
    return "ViT-B" if name == "noah" else "BERT-base"


@pytest.mark.parametrize("name", shipped_spaces())
def test_a_space_is_legal_on_the_model_that_it_is_for(name: str, models: dict[str, ModelSummary]) -> None:
    space, model = SearchSpace.load(name), models[fitting(name)]
    space.check(model)
    chooser = RandomChooser(random.Random(0))
    n_legal, n_drawn = 0, 0
    while n_legal < 200:
        draw = space.draw(chooser, model)
        n_drawn += 1
        assert n_drawn < 4000, f"1 design in {n_drawn // max(1, n_legal)} is legal; the last broke {draw.violation}"
        if not draw.violation:
            draw.design.check(model)
            assert Design.from_dict(draw.design.to_dict()) == draw.design
            n_legal += 1
    smallest = space.smallest(model)
    assert smallest
    assert not any(space.violation(design, model) for design in smallest)


@pytest.mark.parametrize("name", shipped_spaces())
def test_a_space_is_as_large_as_it_says(name: str, models: dict[str, ModelSummary]) -> None:
    space = SearchSpace.load(name)
    text = (files("autopeft.search_spaces") / f"{name}.yaml").read_text(encoding="utf-8")
    comment = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    (row,) = (line for line in README.splitlines() if line.startswith(f"| `{name}.yaml` |"))
    for model in {"MiniLM", "BERT-base"} if fitting(name) == "BERT-base" else {fitting(name)}:
        size = space.size(models[model])
        written = f"{size:,}" if size < 1e9 else f"{size:.1e}"
        assert written in comment, f"{model}: {written}"
        assert written in row, f"{model}: {written}"


def test_the_size_of_the_autopeft_space(models: dict[str, ModelSummary]) -> None:
    """Zhou et al. 2024 on BERT-base: 11 sizes of three techniques, and one bit for each layer that all share."""
    space = SearchSpace.load("autopeft")
    assert space.size(models["BERT-base"]) == 11**3 * 2**12
    draw = space.sample(models["BERT-base"], 0)
    layers = {block.layers for block in draw.design.blocks}
    assert len(layers) == 1
    assert {block.kind for block in draw.design.blocks} <= {"adapter", "prefix"}


def test_the_groups_of_s4_are_those_of_the_paper(models: dict[str, ModelSummary]) -> None:
    """Chen et al. 2023, the design S4: which techniques are in which of the four groups of a spindle."""
    design = SearchSpace.load("s4").sample(models["BERT-base"], 0).design
    by_layer = [
        {block.kind for block in design.blocks if layer in block.layer_indices(models["BERT-base"])}
        for layer in range(12)
    ]
    groups = [{"adapter", "lora"}, {"adapter", "prefix"}, {"adapter", "prefix", "bitfit"}, {"prefix", "bitfit", "lora"}]
    lengths = [2, 4, 4, 2]
    assert by_layer == [kinds for kinds, length in zip(groups, lengths, strict=True) for _ in range(length)]


@pytest.mark.parametrize("name", ["mam", "unipelt"])
def test_single_designs_have_only_rates_to_search(name: str, models: dict[str, ModelSummary]) -> None:
    draws = [SearchSpace.load(name).sample(models["MiniLM"], seed) for seed in range(5)]
    assert len({draw.design for draw in draws}) == 1
    assert len({draw.learning_rates[HEAD] for draw in draws}) == 5


def test_hybrid_full_has_every_technique_that_stands_alone() -> None:
    own = {kind for kind in block_kinds() if _is_built_in(kind)}
    assert {entry.kind for entry in SearchSpace.load("hybrid-full").blocks} == own - NEEDS_MORE


def _is_built_in(kind: str) -> bool:
    from autopeft.spec.block import block_class

    return block_class(kind).__module__.startswith("autopeft.")


@pytest.mark.parametrize("name", shipped_spaces())
def test_every_rate_of_a_space_is_the_measured_prior(name: str) -> None:
    space = SearchSpace.load(name)
    assert space.head_learning_rate == prior(HEAD)
    for entry in space.blocks:
        assert entry.learning_rate == prior(entry.kind), entry.name
