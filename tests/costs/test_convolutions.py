"""What a convolution takes for itself on a CPU: as told from a probe, and as the allocator gave it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from torch._subclasses.fake_tensor import FakeTensorMode

from autopeft.costs import convolutions, kernel_scratch
from autopeft.costs.estimator import Estimator
from autopeft.costs.kernel_scratch import asked
from autopeft.models.attach import attach
from autopeft.models.base import build_meta, load_base
from autopeft.spec.cost import Workload
from autopeft.spec.design import Design
from autopeft.spec.model import Head
from tests.costs.real_run import RealRun, allocated_peak
from tests.hardware import has_fast_bf16

FORWARD, BACKWARD = torch.ops.aten.convolution, torch.ops.aten.convolution_backward
PATCHES, SOUND = ((3, 224, 224), (384, 3, 14, 14), 14), ((80, 400), (384, 80, 3), 1)
HEAD = Head(auto_class="AutoModelForImageClassification", labels=("cat", "dog"))
Kernel = tuple[tuple[int, ...], tuple[int, ...], int]


def calls(kernel: Kernel, n_examples: int, dtype: torch.dtype) -> dict[object, Callable[[], object]]:
    """Return a convolution and its backward pass, ready to be called."""
    sizes, weight_sizes, step = kernel
    read, weight = torch.zeros(n_examples, *sizes, dtype=dtype), torch.zeros(weight_sizes, dtype=dtype)
    n = len(weight_sizes) - 2
    settings = ([step] * n, [0] * n, [1] * n, False, [0] * n, 1)
    made = FORWARD(read, weight, None, *settings)
    back = (torch.zeros_like(made), read, weight, None, *settings, [True, True, False])
    return {FORWARD: partial(FORWARD, read, weight, None, *settings), BACKWARD: partial(BACKWARD, *back)}


def told(packet: object, call: Callable[[], object], n_threads: int) -> int:
    """Return the peak of a call as it is told in a dry run: from fake tensors, under their mode."""
    formula, mode = convolutions.convolution_formulas(n_threads)[packet], FakeTensorMode()
    assert isinstance(call, partial)
    args = [mode.from_tensor(arg) if isinstance(arg, torch.Tensor) else arg for arg in call.args]
    with mode:
        made = call.func(*args)
        results = [tensor for tensor in (made if isinstance(made, tuple) else (made,)) if tensor is not None]
        return sum(tensor.nbytes for tensor in results) + formula(*args, out_val=made)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel", [PATCHES, SOUND])
@pytest.mark.parametrize("n_examples", [1, 4])
def test_a_convolution_takes_what_the_allocator_gave_it(kernel: Kernel, n_examples: int, dtype: torch.dtype) -> None:
    for packet, call in calls(kernel, n_examples, dtype).items():
        assert told(packet, call, 1) == allocated_peak(call)


def test_more_examples_and_threads_than_can_be_asked_for_are_told_from_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolutions, "_LARGEST_PROBE_BYTES", 4_000_000)  # 8 images
    monkeypatch.setattr(convolutions, "most_threads", lambda: 2)
    call, before = calls(PATCHES, 20, torch.bfloat16)[FORWARD], torch.get_num_threads()
    predicted = told(FORWARD, call, 3)
    assert torch.get_num_threads() == before
    torch.set_num_threads(3)
    try:
        assert predicted == pytest.approx(allocated_peak(call), rel=0.01)
    finally:
        torch.set_num_threads(before)
    monkeypatch.setattr(convolutions, "_LARGEST_PROBE_BYTES", 1)  # one example
    call = calls(SOUND, 5, torch.bfloat16)[FORWARD]
    assert told(FORWARD, call, 1) == pytest.approx(allocated_peak(call), rel=0.05)


def test_a_shape_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    call = calls(SOUND, 3, torch.float32)[FORWARD]
    first = told(FORWARD, call, 1)
    monkeypatch.setattr(kernel_scratch, "_allocated_and_freed", lambda _: pytest.fail("asked again"))
    assert told(FORWARD, call, 1) == first


def test_a_profiler_that_runs_already_is_left_alone() -> None:
    """In the thread that asks, and in another one: two of torch's newer profilers at a time end a process."""
    call, other = calls(PATCHES, 2, torch.float32)[FORWARD], calls(PATCHES, 3, torch.float32)[FORWARD]
    alone = allocated_peak(call)
    asked.cache_clear()

    def both() -> object:
        assert told(FORWARD, other, 1) > 0
        assert told(FORWARD, call, 1) == alone
        return call()

    assert allocated_peak(both) == alone


@pytest.mark.parametrize("blocks", [[], [{"full": {"embeddings": True}}]], ids=["head", "full"])
def test_peaks_of_steps_on_images_in_bf16_are_those_of_real_ones(
    blocks: list[dict[str, object]], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    image_size = 224 if has_fast_bf16() else 56
    config = transformers.Dinov2Config(
        hidden_size=384, num_hidden_layers=2, num_attention_heads=6, image_size=image_size, patch_size=14
    )
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    design = Design.from_dict({"blocks": blocks})
    workload = Workload.uniform(batch_size=3, n_tokens=1)
    base = build_meta(str(tmp_path), HEAD, kernel="eager")
    estimator = Estimator(base, workload=workload, precision="bf16", kernel="eager", device="cpu", n_threads=1)
    training, evaluation = estimator.steps(design)
    with attach(load_base(str(tmp_path), HEAD, kernel="eager"), design) as attached:
        run = RealRun(attached, "bf16", batch_size=3, n_tokens=1)
        assert training.peak_bytes == pytest.approx(run.training_peak(), rel=0.005)
        assert evaluation.peak_bytes == pytest.approx(run.evaluation_peak(), rel=0.005)
