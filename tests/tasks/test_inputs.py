"""Batches of every modality: the real model takes them, and their estimate says what the really attached model has."""

import itertools
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

from tiny_models import HEADS, SOUND_HEAD, design, logits, save, saved_as

from autopeft.costs.estimate import estimate
from autopeft.errors import DesignError
from autopeft.models.attach import attach
from autopeft.models.base import load_base
from autopeft.spec.model import Head
from autopeft.tasks.base import task_of

CASES = [(name, HEADS[name]) for name in ("bert", "qwen", "t5", "vit", "dinov2", "whisper")] + [("whisper", SOUND_HEAD)]
DESIGN = design({"lora": {"rank": 2}}, {"adapter": {"size": 3, "at": ["attention", "mlp"]}}, {"ia3": {}})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {name: save(name, tmp_path_factory.mktemp(name), saved_as(name)) for name, _ in CASES}


@pytest.mark.parametrize(("name", "head"), CASES, ids=str)
def test_the_model_takes_the_batch_and_answers_in_the_shape_of_its_labels(
    saved: dict[str, str], name: str, head: Head
) -> None:
    base = load_base(saved[name], head)
    batch = task_of(head).example_batch(base, batch_size=3, n_tokens=7, device=torch.device("cpu"))
    filled = {key: torch.ones_like(tensor) for key, tensor in batch.forward.items()}
    assert logits(base.model, filled).shape[:-1] == batch.labels.shape


@pytest.mark.parametrize(
    ("name", "head", "quantization"),
    [
        (*case, quantization)
        for case, quantization in zip(CASES, itertools.cycle(["none", "int8", "nf4"]), strict=False)
    ],
    ids=str,
)
def test_the_estimate_counts_what_the_attached_model_has(
    saved: dict[str, str], name: str, head: Head, quantization: str
) -> None:
    made = design(*DESIGN.to_dict()["blocks"], quantization=quantization)
    cost = estimate(saved[name], made, head=head, batch_size=2, sequence_length=8)
    base = load_base(saved[name], head, quantization=quantization)  # type: ignore[arg-type]
    with attach(base, made) as attached:
        assert cost.trainable_params == attached.n_trainable
    twice = estimate(saved[name], made, head=head, batch_size=4, sequence_length=8)
    assert cost.base_bytes < cost.peak_memory < twice.peak_memory
    assert 0 < cost.train_flops < twice.train_flops


def test_more_tokens_than_a_decoder_can_write_are_refused(saved: dict[str, str]) -> None:
    with pytest.raises(DesignError, match="n_positions=40"):
        estimate(saved["whisper"], DESIGN, head=HEADS["whisper"], sequence_length=41)
    assert estimate(saved["vit"], DESIGN, head=HEADS["vit"], sequence_length=1000).trainable_params > 0
