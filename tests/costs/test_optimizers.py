"""States and steps of optimizers, and checkpointed layers, against real steps."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from autopeft.costs.estimator import Estimator
from autopeft.costs.optimizers import state_bytes
from autopeft.costs.simulated_step import Machine, SimulatedStep
from autopeft.costs.tracker import StorageTracker
from autopeft.models.attach import attach
from autopeft.models.base import Base, build_meta
from autopeft.spec.cost import Workload
from autopeft.spec.design import Design
from tests.costs.conftest import BATCH_SIZE, N_TOKENS
from tests.costs.real_run import HEAD, OPTIMIZERS, RealRun, counted, storage_bytes
from tests.hardware import step_shape

HYBRID = [{"lora": {"rank": 4}}, {"adapter": {"size": 16, "mode": "parallel"}}, {"prefix": {"length": 4}}]
FULL = [{"full": {"embeddings": True}}]
RANDOM_STATE_BYTES = 5056
"""What torch keeps of its generator for each layer that is checkpointed; no tensor of the step, and not estimated."""


def check(
    loaded: Callable[..., Base],
    minilm: str,
    blocks: list[object],
    quantization: str,
    precision: str,
    kernel: str,
    *,
    optimizer: str = "adamw",
    checkpointing: bool = False,
    tolerance: float = 1e-5,
) -> None:
    made = Design.from_dict({"blocks": blocks, "quantization": quantization})
    batch_size, n_tokens = step_shape(precision, BATCH_SIZE, N_TOKENS)
    estimator = Estimator(
        build_meta(minilm, HEAD, kernel=kernel),  # type: ignore[arg-type]
        workload=Workload.uniform(batch_size=batch_size, n_tokens=n_tokens),
        precision=precision,  # type: ignore[arg-type]
        kernel=kernel,  # type: ignore[arg-type]
        device="cpu",
        optimizer=optimizer,  # type: ignore[arg-type]
        checkpointing=checkpointing,
    )
    predicted, _ = estimator.steps(made)
    base = loaded(quantization, precision, kernel)
    with attach(base, made, checkpointing=checkpointing) as attached:
        run = RealRun(attached, precision, batch_size=batch_size, n_tokens=n_tokens, optimizer=optimizer)
        measured = run.training_peak()
        if checkpointing:
            assert predicted.flops == counted(run.train)
    # Layers that are to be computed again keep the generator's state, and the one that is, the state to go back to: how
    # many of them are alive at the peak depends on the design.
    states = RANDOM_STATE_BYTES * (base.summary.n_layers + 1) if checkpointing else 0
    assert (1 - tolerance) * measured - states <= predicted.peak_bytes <= (1 + tolerance) * measured


@pytest.mark.parametrize("optimizer", ["adamw_8bit", pytest.param("sgd", marks=pytest.mark.thorough)])
def test_peaks_with_other_optimizers(loaded: Callable[..., Base], minilm: str, optimizer: str) -> None:
    """Of full fine-tuning the 8-bit step itself is the peak, on a CPU."""
    for blocks in (HYBRID, FULL):
        check(loaded, minilm, blocks, "none", "fp32", "sdpa", optimizer=optimizer)


# In bf16 the kernels of products keep copies of their own, without checkpointing too.
@pytest.mark.parametrize(
    ("quantization", "precision", "kernel", "tolerance"),
    [("none", "fp32", "sdpa", 1e-5), ("nf4", "bf16", "eager", 0.01)],
)
def test_peaks_with_checkpointing(
    loaded: Callable[..., Base], minilm: str, quantization: str, precision: str, kernel: str, tolerance: float
) -> None:
    check(loaded, minilm, HYBRID, quantization, precision, kernel, checkpointing=True, tolerance=tolerance)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("quantization", "precision", "kernel"),  # each pair of them
    [("none", "fp32", "sdpa"), ("none", "bf16", "eager"), ("nf4", "fp32", "eager"), ("nf4", "bf16", "sdpa")],
)
def test_peaks_with_checkpointing_everywhere(
    loaded: Callable[..., Base], minilm: str, quantization: str, precision: str, kernel: str
) -> None:
    for blocks in (HYBRID, [{"lora": {"rank": 8}}], [{"prompt": {"length": 8}}], []):
        tolerance = 0.01 if precision == "bf16" else 1e-5
        check(loaded, minilm, blocks, quantization, precision, kernel, checkpointing=True, tolerance=tolerance)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_states_are_as_large_as_real_ones(optimizer: str) -> None:
    sizes = (1, 255, 4095, 4096, 4097, 100_000)
    parameters = [torch.nn.Parameter(torch.ones(size)) for size in sizes]
    made = OPTIMIZERS[optimizer](parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    made.step()
    kept = [value for fields in made.state.values() for value in fields.values() if isinstance(value, torch.Tensor)]
    assert state_bytes(optimizer, sizes) == storage_bytes(kept)  # type: ignore[arg-type]


def test_layers_that_are_computed_again_run_on_the_same_kernels(minilm: str) -> None:
    """CUDA is played on CPU tensors, and what the backward pass computes again must be played too."""
    seen: Counter[object] = Counter()

    class Recorder(StorageTracker):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen[func.overloadpacket] += 1
            return super().__torch_dispatch__(func, types, args, kwargs)

    class RecordedRun(SimulatedStep):
        tracker_class = Recorder

    machine = Machine(device="cuda", precision="fp32", n_threads=1, checkpointing=True)
    base = build_meta(minilm, HEAD)
    with torch.device("meta"):  # as an estimator does
        attached = attach(base, Design.from_dict({"blocks": HYBRID}), checkpointing=True)
    with attached, RecordedRun(attached, machine, whole=True) as run:
        run.training_step(batch_size=2, n_tokens=8)
    assert seen[torch.ops.aten._scaled_dot_product_efficient_attention] == 2 * base.summary.n_layers
    assert seen[torch.ops.aten._scaled_dot_product_flash_attention_for_cpu] == 0
