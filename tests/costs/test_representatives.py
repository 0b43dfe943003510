"""Designs on a few layers, with the others written down, against designs on all layers: the same to the byte."""

from pathlib import Path
from typing import Any

import pytest

from autopeft.costs.allocator import replay
from autopeft.costs.cuda import CUBLAS_WORKSPACES
from autopeft.costs.estimator import Estimator
from autopeft.costs.representatives import Layers, attach_meta
from autopeft.costs.simulated_step import SimulatedStep
from autopeft.models.base import Base
from autopeft.spec.cost import Workload
from tests.costs.test_repeats import deep
from tests.models.tiny_models import design

WORKLOAD = Workload.uniform(batch_size=3, n_tokens=9)
SPARSE = [0, 2, 4, 6, 8, 10, 12]
BLOCKS: dict[str, list[dict[str, Any]]] = {
    "head": [],
    "lora": [{"lora": {"rank": 2}}],
    "gated lora": [{"lora": {"rank": 2, "gate": True}}],
    "lora of two ranks": [
        {"lora": {"rank": 2, "layers": SPARSE}},
        {"lora": {"rank": 3, "layers": [1, 3, 5, 7, 9, 11]}},
    ],
    "frozen a": [{"lora": {"rank": 2, "freeze_a": True}}],
    "adalora": [{"adalora": {"rank": 2}}],
    "vera": [{"vera": {"rank": 4}}],
    "oft": [{"oft": {"block_size": 4}}],
    "shira": [{"shira": {"rank": 1}}],
    "ia3": [{"ia3": {}}],
    "compacter": [{"compacter": {"size": 4, "n": 2}}],
    "prefix": [{"prefix": {"length": 2}}],
    "prefix in some": [{"prefix": {"length": 2, "layers": [3, 4, 5, 6, 7, 8, 9, 10, 11, 12]}}],
    "projected prefix": [{"prefix": {"length": 2, "projection": True, "projection_size": 4}}],
    "full": [{"full": {"embeddings": True}}],
    "full and norms": [{"full": {"layers": [0, 1]}}, {"norms": {"layers": [2, 3, 4, 5, 6, 7, 8, 9], "outer": True}}],
    "hybrid": [{"lora": {"rank": 2}}, {"adapter": {"size": 4, "mode": "parallel"}}, {"prompt": {"length": 2}}],
}
FAST = ("lora of two ranks", "hybrid")


def check(base: Base, blocks: list[dict[str, Any]], **settings: Any) -> None:
    chosen = design(*blocks, quantization=settings.pop("quantization", "none"))
    known = {"precision": "bf16", "kernel": base.kernel, "device": "cpu", "n_threads": 1, **settings}
    few = Estimator(base, workload=WORKLOAD, **known)
    machine = few.machine
    assert Layers(base).repeats(chosen)
    estimate, steps, n_trainable = few(chosen), few.steps(chosen), few.trainable_params(chosen)
    with attach_meta(few.base(chosen.quantization), chosen, checkpointing=machine.checkpointing) as attached:
        assert estimate.trainable_params == n_trainable == attached.n_trainable
        assert estimate.adapter_bytes == sum(tensor.nbytes for tensor in attached.exported_tensors().values())
        with SimulatedStep(attached, machine, whole=True) as run:
            whole = run.training_step(batch_size=3, n_tokens=9), run.evaluation_step(batch_size=3, n_tokens=9)
    for one, other in zip(steps, whole, strict=True):
        assert (one.peak_bytes, one.at_peak) == (other.peak_bytes, other.at_peak)
        assert (one.flops, one.attention_flops) == (other.flops, other.attention_flops)
    if machine.device == "cuda":
        events = [step.events for step in whole]
        assert estimate.reserved_memory == replay(*events, workspaces=CUBLAS_WORKSPACES).reserved_bytes


@pytest.mark.parametrize(
    "blocks", [pytest.param(b, id=n, marks=() if n in FAST else pytest.mark.thorough) for n, b in BLOCKS.items()]
)
def test_a_few_attached_layers_cost_what_all_do(blocks: list[dict[str, Any]], tmp_path: Path):
    check(deep("llama", tmp_path, n_layers=13), blocks)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["lora", "prefix in some", "full and norms", "hybrid"])
def test_what_cuda_reserves_is_the_same_too(name: str, tmp_path: Path):
    check(deep("llama", tmp_path, n_layers=13), BLOCKS[name], device="cuda")


@pytest.mark.parametrize("quantization", ["nf4", pytest.param("int8", marks=pytest.mark.thorough)])
def test_quantized_layers_are_left_out_too(quantization: str, tmp_path: Path):
    base = deep("llama", tmp_path, n_layers=13)
    check(base, BLOCKS["hybrid"], quantization=quantization, checkpointing=True)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["bert", "mpnet", "gpt2", "qwen", "t5", "vit", "whisper"])
def test_layers_of_other_architectures_can_be_left_out(name: str, tmp_path: Path):
    check(deep(name, tmp_path), [{"lora": {"rank": 2}}])


def test_a_base_is_left_as_it_was(tmp_path: Path):
    base = deep("llama", tmp_path, n_layers=13)
    before = dict(base.model.named_modules()), dict(base.model.named_parameters())
    Estimator(base, workload=WORKLOAD, precision="fp32", kernel="sdpa", device="cpu")(design(*BLOCKS["hybrid"]))
    base.verify()
    assert (dict(base.model.named_modules()), dict(base.model.named_parameters())) == before
