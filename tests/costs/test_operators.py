"""What operators make of fake tensors: the same when it is remembered as when torch is asked each time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from autopeft.costs import operators
from autopeft.costs.operators import FakeOperators
from autopeft.costs.quantized import quantize_meta
from autopeft.costs.simulated_step import Machine, SimulatedStep, StepCost
from autopeft.models.attach import Attached, attach
from tests.costs.test_repeats import SHAPE, deep, machine
from tests.models.tiny_models import CONFIGS, design

aten = torch.ops.aten
CPU = torch.device("cpu")
BLOCKS: tuple[dict[str, Any], ...] = ({"lora": {"rank": 2, "dropout": 0.1, "roles": "all"}}, {"norms": {}})


@pytest.fixture(autouse=True)
def _nothing_known() -> Iterator[None]:
    operators._known.clear()
    yield
    operators._known.clear()


def steps(attached: Attached, chosen: Machine) -> tuple[StepCost, StepCost]:
    with SimulatedStep(attached, chosen, whole=True) as run:
        return run.training_step(**SHAPE), run.evaluation_step(**SHAPE)


def check(name: str, folder: Path, quantization: str = "none", **settings: Any) -> None:
    """Compare the steps of a model when they are new, when they are known, and when torch is asked each time."""
    chosen, base = machine(**settings), deep(name, folder, n_layers=3)
    with attach(
        quantize_meta(base, quantization, chosen.precision),
        design(*BLOCKS, quantization=quantization),
        checkpointing=chosen.checkpointing,
    ) as attached:
        new, known = steps(attached, chosen), steps(attached, chosen)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FakeOperators, "__call__", lambda _, operator, args, kwargs: operator(*args, **kwargs))
            asked = steps(attached, chosen)
    for step, again, other in zip(new, known, asked, strict=True):
        assert (step.peak_bytes, step.at_peak) == (again.peak_bytes, again.at_peak) == (other.peak_bytes, other.at_peak)
        assert (step.flops, step.attention_flops) == (again.flops, again.attention_flops)
        assert (step.flops, step.attention_flops) == (other.flops, other.attention_flops)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ("bert", "llama") else pytest.mark.slow) for name in CONFIGS]
)
def test_steps_cost_the_same(name: str, tmp_path: Path):
    check(name, tmp_path)


@pytest.mark.parametrize(
    ("quantization", "settings"),
    [
        ("nf4", {"precision": "bf16"}),
        pytest.param("int8", {}, marks=pytest.mark.slow),
        pytest.param("nf4-dq", {"checkpointing": True}, marks=pytest.mark.slow),
        pytest.param("none", {"device": "cuda", "precision": "bf16"}, marks=pytest.mark.slow),
    ],
)
def test_steps_of_other_machines_cost_the_same(quantization: str, settings: dict[str, Any], tmp_path: Path):
    check("llama", tmp_path, quantization, **settings)


def test_views_share_what_they_see_and_other_results_do_not():
    mode = FakeTensorMode()
    run = FakeOperators(mode, CPU)
    with mode:
        rows = torch.empty(3, 4, dtype=torch.bfloat16)
        for _ in range(2):  # asked, then remembered
            turned = run(aten.t.default, (rows,), {})
            parts = run(aten.split.Tensor, (turned, 2), {})
            copied = run(aten.clone.default, (turned,), {})
            assert turned.untyped_storage()._cdata == rows.untyped_storage()._cdata
            assert (tuple(turned.shape), turned.stride(), turned.dtype) == ((4, 3), (1, 4), torch.bfloat16)
            assert [(tuple(p.shape), p.storage_offset()) for p in parts] == [((2, 3), 0), ((2, 3), 2)]
            assert {p.untyped_storage()._cdata for p in parts} == {rows.untyped_storage()._cdata}
            assert copied.untyped_storage()._cdata != rows.untyped_storage()._cdata
            assert copied.device == turned.device == CPU


def test_numbers_of_another_kind_are_not_taken_for_each_other():
    mode = FakeTensorMode()
    run = FakeOperators(mode, CPU)
    with mode:
        whole = torch.empty(3, dtype=torch.int64)
        for _ in range(2):
            assert run(aten.mul.Tensor, (whole, 1), {}).dtype == torch.int64
            assert run(aten.mul.Tensor, (whole, 1.0), {}).dtype == torch.float32


def test_what_changes_its_argument_returns_it():
    mode = FakeTensorMode()
    run = FakeOperators(mode, CPU)
    with mode:
        rows = torch.empty(3, 4)
        for _ in range(2):
            assert run(aten.add_.Tensor, (rows, 1.0), {}) is rows
            run(aten.t_.default, (turning := torch.empty(3, 4),), {})
            assert tuple(turning.shape) == (4, 3)
