"""Every technique, alone and in pairs, over every base: it works, or is refused with a reason before it is attached."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rows import BY_NAME, ROWS
from tiny_models import HEAD, LANGUAGE_HEAD, content, logits, perturb, structure

from autopeft.errors import DesignError
from autopeft.models.artifact import load, pack
from autopeft.models.attach import attach
from autopeft.models.base import Base, load_base
from autopeft.spec.block import block_kinds
from autopeft.spec.design import QUANTIZATIONS, Design

MODELS = ("bert", "llama", "llama-lm")
SINGLES = [(row.name,) for row in ROWS]
PAIRS = [pair for pair in itertools.combinations(BY_NAME, 2) if pair[0].partition(",")[0] != pair[1].partition(",")[0]]
# Each pair of kinds once, each time on another model and base; the whole product is below, as a slow test.
KIND_PAIRS = list({tuple(name.partition(",")[0] for name in pair): pair for pair in PAIRS}.values())
ALL_BASES = list(itertools.product(MODELS, QUANTIZATIONS))
COVERING = [(*ALL_BASES[(5 * at) % len(ALL_BASES)], pair) for at, pair in enumerate(KIND_PAIRS)]
EVERYTHING = ("lora", "adapter, parallel", "ia3", "prefix", "prompt")


@pytest.fixture(scope="module")
def loaded(folders: dict[str, str], language_folders: dict[str, str]) -> Any:
    """Return a function that loads a tiny model, quantized or not, once."""
    kept: dict[tuple[str, str], Base] = {}

    def get(model: str, quantization: str) -> Base:
        if (model, quantization) not in kept:
            name, _, language = model.partition("-")
            folder, head = (language_folders[name], LANGUAGE_HEAD) if language else (folders[name], HEAD)
            kept[model, quantization] = load_base(folder, head, quantization=quantization)  # type: ignore[arg-type]
        return kept[model, quantization]

    return get


def make(names: tuple[str, ...], quantization: str) -> Design:
    return Design.from_dict({"quantization": quantization, "blocks": [BY_NAME[name].block for name in names]})


def refusals(made: Design) -> Iterator[str]:
    """Yield what the blocks say that they cannot go with in this design: the table's only source."""
    for block in made.blocks:
        yield from (other for other in block.conflicts() if other in (made.quantization, *made.kinds))


def count(names: tuple[str, ...], base: Base) -> int:
    """Count by the formulas of the papers."""
    rows = [BY_NAME[name] for name in names]
    return base.summary.n_head_parameters + sum(row.count(row.make(), base.summary) for row in rows)


def step(base: Base, text: dict[str, torch.Tensor]) -> None:
    base.model.train()
    labels = text["input_ids"] if base.head is LANGUAGE_HEAD else torch.tensor([0, 1, 0])
    base.model.zero_grad(set_to_none=True)
    base.model(**text, labels=labels).loss.backward()


def check(base: Base, names: tuple[str, ...], made: Design, text: dict[str, torch.Tensor], folder: Path | None) -> None:
    """Check all that must hold of a legal design on a base."""
    tensors, modules, plain = content(base.model), structure(base.model), logits(base.model, text)
    with attach(base, made) as attached:
        assert attached.n_trainable == count(names, base)
        perturb(attached)  # what is zero at the start hides the gradient of what feeds it
        answer, state = logits(base.model, text), attached.state()
        assert answer.shape == plain.shape
        for kind, group in attached.groups.items():
            perturb(attached, seed=2, only=group)
            assert not group or (logits(base.model, text) - answer).abs().max() > 1e-4, f"{kind} changes nothing"
            attached.load_state(state)
        for _ in range(2):  # the second time after an evaluation
            step(base, text)
            trained = {name for name, p in base.model.named_parameters() if p.requires_grad}
            reached = {
                name
                for name, p in base.model.named_parameters()
                if p.grad is not None and bool(p.grad.isfinite().all()) and bool(p.grad.abs().sum() > 0)
            }
            assert reached == trained
            assert torch.equal(logits(base.model, text), answer)
        if folder is not None:
            for name, written in pack(attached, metadata={}).items():
                (folder / name).write_bytes(written)
    assert content(base.model) == tensors
    assert structure(base.model) == modules
    assert torch.equal(logits(base.model, text), plain)
    base.verify()
    if folder is not None:
        torch.testing.assert_close(logits(load(folder)[0], text), answer, atol=1e-5, rtol=1e-5)


def works_or_is_refused(base: Base, names: tuple[str, ...], text: dict[str, torch.Tensor], folder: Path | None) -> None:
    made = make(names, base.quantization)
    reasons = list(refusals(made))
    if reasons:
        with pytest.raises(DesignError, match=f"cannot go with {reasons[0]}: .*leave out one of the two"):
            made.check(base.summary)
        return
    check(base, names, made, text, folder)


def test_every_kind_is_among_the_variants() -> None:
    assert {block.kind for name in BY_NAME for block in make((name,), "none").blocks} == set(block_kinds())


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("names", SINGLES, ids=str)
def test_each_technique_over_each_base(
    loaded: Any, text: dict[str, torch.Tensor], tmp_path: Path, model: str, quantization: str, names: tuple[str, ...]
) -> None:
    works_or_is_refused(loaded(model, quantization), names, text, tmp_path)


@pytest.mark.parametrize(("model", "quantization", "names"), COVERING, ids=str)
def test_each_pair_of_kinds(
    loaded: Any, text: dict[str, torch.Tensor], tmp_path: Path, model: str, quantization: str, names: tuple[str, ...]
) -> None:
    works_or_is_refused(loaded(model, quantization), names, text, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("names", [*PAIRS, EVERYTHING], ids=str)
def test_every_pair_over_every_base(
    loaded: Any, text: dict[str, torch.Tensor], tmp_path: Path, model: str, quantization: str, names: tuple[str, ...]
) -> None:
    works_or_is_refused(loaded(model, quantization), names, text, tmp_path)
