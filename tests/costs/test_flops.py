"""FLOPs of a step, exactly as torch's own counter counts them in a real step of the weighted model.

Eager attention has nothing that torch has no formula for. Of CPU flash attention it has none: there the counter takes
its own formula for the CUDA kernel of the same mathematics. Products with 4-bit weights have no formula either, and do
the arithmetic of the unquantized ones. An LSTM is one kernel without a formula: test_recurrent.py has it.
"""

import sys
from collections.abc import Callable, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

from rows import BY_NAME, ROWS
from tiny_models import HEADS, save, saved_as

from autopeft.costs.estimator import Estimator
from autopeft.models.attach import attach
from autopeft.models.base import Base, build_meta, load_base
from autopeft.spec.cost import Workload
from autopeft.spec.design import Design
from tests.costs.real_run import RealRun

ARCHITECTURES = ("bert", "llama", "dinov2", "t5", "qwen", "whisper", "gpt2", "mpnet")
BATCH_SIZE, N_TOKENS = 2, 9
_aten = torch.ops.aten
SAME_MATHEMATICS = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _aten._scaled_dot_product_flash_attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _aten._scaled_dot_product_flash_attention_backward,
}
Bases = Callable[[str, str], tuple[Base, Base]]


def cases(kernels: tuple[str, str]) -> list[tuple[str, str, str]]:
    """Return each technique with an architecture that takes it, both kernels in turn."""
    architectures, turns = cycle(ARCHITECTURES), cycle(kernels)
    rows = [row for row in ROWS if "lstm" not in row.name]
    return [
        (row.name, next(name for name in architectures if name not in row.refused_on), kernel)
        for row, kernel in zip(rows, turns, strict=False)
    ]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    """Return a function that gives a tiny model with weights, and one without, each made once."""
    folders: dict[str, str] = {}
    made: dict[tuple[str, str], tuple[Base, Base]] = {}

    def get(name: str, kernel: str) -> tuple[Base, Base]:
        if name not in folders:
            folders[name] = save(name, tmp_path_factory.mktemp(name), saved_as(name))
        if (name, kernel) not in made:
            made[name, kernel] = tuple(
                make(folders[name], HEADS[name], kernel=kernel) for make in (load_base, build_meta)
            )
        return made[name, kernel]

    return get


def estimated(meta: Base, design: Design, *, checkpointing: bool = False) -> tuple[int, int]:
    """Return the FLOPs of a training step and of an evaluation step that are known before."""
    workload = Workload.uniform(batch_size=BATCH_SIZE, n_tokens=N_TOKENS)
    estimator = Estimator(
        meta, workload=workload, precision="fp32", kernel=meta.kernel, device="cpu", checkpointing=checkpointing
    )
    training, evaluation = estimator.steps(design)
    return training.flops, evaluation.flops


def counted(base: Base, design: Design, *, checkpointing: bool = False) -> tuple[int, int]:
    """Return what torch counts in a real training step and a real evaluation step."""
    with attach(base, design, checkpointing=checkpointing) as attached:
        run = RealRun(attached, "fp32", batch_size=BATCH_SIZE, n_tokens=N_TOKENS)
        totals = []
        for step, training in ((run.train, True), (run.evaluate, False)):
            attached.model.train(training)
            if not training:  # the counter hooks gradients, also where none are made
                attached.model.requires_grad_(False)
            with FlopCounterMode(display=False, custom_mapping=twins()) as counter:
                step()
            totals.append(counter.get_total_flops())
        return totals[0], totals[1]


def twins() -> Mapping[Any, Any]:
    """Return torch's formulas of CUDA kernels for the CPU's."""

    def taking_tensors(formula: Callable[..., int]) -> Callable[..., int]:
        def counting(*args: object, **kwargs: object) -> int:
            return formula(*args, **kwargs)

        counting._get_raw = True  # the registered ones ask tensors for their shapes themselves
        return counting

    return {op: taking_tensors(flop_registry[twin]) for op, twin in SAME_MATHEMATICS.items()}


@pytest.mark.parametrize(
    ("name", "architecture", "kernel"),
    [
        case if number % 4 == 0 else pytest.param(*case, marks=pytest.mark.slow)
        for number, case in enumerate(cases(("sdpa", "eager")) + cases(("eager", "sdpa")))
    ],
)
def test_flops_are_those_that_torch_counts(name: str, architecture: str, kernel: str, bases: Bases) -> None:
    base, meta = bases(architecture, kernel)
    made = Design(blocks=(BY_NAME[name].make(base),))
    training, evaluation = estimated(meta, made)
    assert (training, evaluation) == counted(base, made)
    assert training > evaluation > 0


@pytest.mark.parametrize("architecture", ["bert", pytest.param("llama", marks=pytest.mark.slow), "t5"])
def test_layers_that_compute_again_count_twice(architecture: str, bases: Bases) -> None:
    base, meta = bases(architecture, "sdpa")
    made = Design.from_dict({"blocks": [{"lora": {"rank": 2}}, {"adapter": {"size": 3}}]})
    assert estimated(meta, made, checkpointing=True) == counted(base, made, checkpointing=True)
    assert estimated(meta, made, checkpointing=True)[0] > 1.2 * estimated(meta, made)[0]


@pytest.mark.parametrize("quantization", ["nf4", "fp4", "nf4-dq", "int8"])
def test_quantized_products_count_as_plain_ones(quantization: str, bases: Bases) -> None:
    """The gradient of a quantized layer's input is one more product, as it is of a plain one."""
    base, meta = bases("bert", "sdpa")
    blocks = [{"lora": {"rank": 2}}, {"prefix": {"length": 3}}]
    assert estimated(meta, Design.from_dict({"quantization": quantization, "blocks": blocks})) == counted(
        base, Design.from_dict({"blocks": blocks})
    )
