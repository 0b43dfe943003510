"""A step of a few layers, written down as one of all, against the step of all: the same to the byte."""

from pathlib import Path
from typing import Any

import pytest

from autopeft.costs.quantized import quantize_meta
from autopeft.costs.repeats import Repeat, find_repeats
from autopeft.costs.simulated_step import Machine, SimulatedStep
from autopeft.models.attach import attach
from autopeft.models.base import Base, build_meta
from tests.models.tiny_models import CONFIGS, HEADS, design

N_LAYERS = 7
_LENGTHS = (
    "num_hidden_layers",
    "n_layers",
    "n_layer",
    "num_layers",
    "num_decoder_layers",
    "encoder_layers",
    "decoder_layers",
)
SHAPE = {"batch_size": 3, "n_tokens": 9}


def deep(name: str, folder: Path, kernel: str = "sdpa", n_layers: int = N_LAYERS) -> Base:
    """Build a tiny architecture with more layers than its steps need to run."""
    config = CONFIGS[name]()
    known = config.to_dict()
    settings = {key: value for key, value in known.items() if key not in ("transformers_version", "layer_types")}
    settings |= {key: n_layers for key in _LENGTHS if key in known}
    type(config)(**settings).save_pretrained(folder)
    return build_meta(str(folder), HEADS[name], kernel=kernel, needs_weights=False)


def machine(**settings: Any) -> Machine:
    return Machine(**({"device": "cpu", "precision": "fp32", "n_threads": 1} | settings))


def check(base: Base, blocks: list[dict[str, Any]], chosen: Machine, *, repeats: bool = True) -> None:
    """Compare both steps, few layers against all."""
    with attach(base, design(*blocks, quantization=base.quantization), checkpointing=chosen.checkpointing) as attached:
        assert bool(find_repeats(base.model, base.summary)) is repeats
        with SimulatedStep(attached, chosen) as run:
            few = run.training_step(**SHAPE), run.evaluation_step(**SHAPE)
        with SimulatedStep(attached, chosen, whole=True) as run:
            whole = run.training_step(**SHAPE), run.evaluation_step(**SHAPE)
    for one, other in zip(few, whole, strict=True):
        assert (one.peak_bytes, one.at_peak) == (other.peak_bytes, other.at_peak)
        assert (one.flops, one.attention_flops) == (other.flops, other.attention_flops)


@pytest.mark.thorough
@pytest.mark.parametrize("name", CONFIGS)
def test_a_few_layers_cost_what_all_do(name: str, tmp_path: Path):
    # Gemma's layers repeat in sixes, one of which is all that seven layers hold.
    check(deep(name, tmp_path), [{"lora": {"rank": 2}}], machine(), repeats=name != "gemma")


@pytest.mark.parametrize(
    "blocks",
    [
        [],
        [{"lora": {"rank": 2, "layers": [1, 2, 3, 4, 5, 6]}}],
        [{"adapter": {"size": 4, "mode": "serial", "at": ["attention", "mlp"]}}, {"prefix": {"length": 2}}],
        [{"full": {}}],
    ],
    ids=["head", "last six", "hybrid", "full"],
)
def test_designs_cost_what_they_do_in_all_layers(blocks: list[dict[str, Any]], tmp_path: Path):
    check(deep("llama", tmp_path), blocks, machine(precision="bf16"))


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantized_layers_repeat_too(quantization: str, tmp_path: Path):
    base = quantize_meta(deep("llama", tmp_path, "eager"), quantization, "bf16")
    check(base, [{"lora": {"rank": 2}}], machine(precision="bf16", checkpointing=True))


def test_a_pattern_of_layers_repeats(tmp_path: Path):
    base = deep("bert", tmp_path, n_layers=12)
    layers = [0, 2, 4, 6, 8, 10]
    with attach(base, design({"lora": {"rank": 2, "layers": layers}})):
        path = base.summary.layers[0].path.rpartition(".")[0]
        assert find_repeats(base.model, base.summary) == (Repeat(path=path, start=0, period=2, count=6),)
    check(base, [{"lora": {"rank": 2, "layers": layers}}], machine())


def test_layers_that_differ_are_all_run(tmp_path: Path):
    check(deep("bert", tmp_path), [{"lora": {"rank": 2, "layers": [0, 3, 4]}}], machine(), repeats=False)


def test_a_model_is_left_as_it_was(tmp_path: Path):
    base = deep("bert", tmp_path)
    before = dict(base.model.named_modules())
    check(base, [], machine())
    assert dict(base.model.named_modules()) == before
