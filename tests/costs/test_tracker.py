from collections.abc import Callable

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import linear

from autopeft.costs.tracker import StorageTracker
from tests.costs.real_run import allocated_peak

N = 4 * 128 * 256  # bytes of one fp32 tensor [128, 256]


def meta(*shape: int, **options: object) -> torch.Tensor:
    return torch.empty(shape, device="meta", **options)


def test_views_aliases_and_in_place_operations_cost_nothing():
    tensor = meta(128, 256)
    tracker = StorageTracker()
    tracker.register([tensor, tensor.t(), tensor[3:]], "base")
    with tracker:
        view = tensor.t().reshape(256, 128)[1:]
        view.add_(1).relu_()
    assert tracker.live_bytes["base"] == N
    assert tracker.peak_bytes == N


def test_a_storage_lives_until_its_last_view_dies():
    with StorageTracker() as tracker:
        tensor = meta(128, 256)
        view = tensor[:1]
        del tensor
        assert tracker.live_bytes["activations"] == N
        del view
        assert tracker.live_bytes["activations"] == 0
    assert tracker.peak_bytes == N


def test_what_autograd_saves_lives_until_the_backward():
    weight = meta(128, 256, requires_grad=True)
    with StorageTracker() as tracker:
        loss = (weight * 2).exp().sum()  # exp saves its result; the product dies
        assert tracker.live_bytes["activations"] == N + loss.nbytes
        loss.backward()
        del loss
        assert tracker.live_bytes["activations"] == N  # the gradient; nothing asked for it by its name


def test_gradients_are_called_by_their_name():
    weight = torch.nn.Parameter(meta(128, 256))
    tracker = StorageTracker()
    tracker.register([weight], "trainable")
    hooks = tracker.watch_gradients([weight])
    with tracker:
        (weight * 2).sum().backward()
    assert len(hooks) == 1
    assert tracker.live_bytes == {**dict.fromkeys(tracker.live_bytes, 0), "trainable": N, "gradients": N}


def test_a_peak_says_what_it_was_made_of():
    tracker = StorageTracker()
    base = meta(128, 256)
    tracker.register([base], "base")
    with tracker:
        base + 1
    assert tracker.at_peak["base"] == N
    assert tracker.at_peak["activations"] == N
    assert sum(tracker.at_peak.values()) == tracker.peak_bytes


def test_scratch_counts_while_its_kernel_runs_and_no_longer():
    scratch = {torch.ops.aten.mm: lambda left, *_, **__: 1000 * left.shape[0]}
    with StorageTracker(scratch=scratch) as tracker:
        product = meta(128, 256) @ meta(256, 64)
    assert tracker.at_peak["scratch"] == 128_000
    assert tracker.live_bytes["scratch"] == 0
    assert product.shape == (128, 64)


def test_a_tensor_without_data_answers_no():
    with StorageTracker():
        assert not meta(1).bool().item()
    with FakeTensorMode(), StorageTracker():
        assert not bool(torch.ones(3).all())


def test_a_tensor_with_data_answers_for_itself():
    with StorageTracker():
        assert torch.ones(1).item() == 1


FROZEN, TRAINED, BIAS = torch.randn(64, 1024), torch.randn(8, 1024, requires_grad=True), torch.randn(64)
GRAPHS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "two products": lambda x: (x * 2).sum() + (x * 3).sum(),
    "three products": lambda x: (x * 2).sum() + (x * 3).sum() + (x * 4).sum(),
    "a view's gradient first": lambda x: (x * 3).sum() + (x.view(512, 1024) * 2).sum(),
    "a view's gradient second": lambda x: (x.view(512, 1024) * 2).sum() + (x * 3).sum(),
    "a frozen map, then a trained one": lambda x: linear(x, FROZEN, BIAS).sum() + linear(x, TRAINED).sum(),
    "a trained map, then a frozen one": lambda x: linear(x, TRAINED).sum() + linear(x, FROZEN, BIAS).sum(),
    "a residual": lambda x: (x + linear(linear(x, TRAINED), TRAINED.t())).sum(),
    "one gradient for two": lambda x: ((x + x * 2) * x.exp()).sum(),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_sums_of_gradients_are_in_place_where_autograd_makes_them_so(name: str):
    """Autograd adds in place outside of dispatch modes only: the peak must be that of outside."""
    inputs = torch.randn(4, 128, 1024, requires_grad=True)

    def step() -> None:
        TRAINED.grad = inputs.grad = None
        GRAPHS[name](inputs * 1.0).backward()

    step()
    TRAINED.grad = inputs.grad = None
    measured = allocated_peak(step)
    TRAINED.grad = inputs.grad = None
    tracker = StorageTracker()
    tracker.register([inputs, FROZEN, TRAINED, BIAS], "base")
    with tracker:
        step()
    assert tracker.peak_bytes - tracker.live_bytes["base"] == pytest.approx(measured, rel=0.01)
