import gc

import pytest
import torch
from torch import nn

from autopeft.training.measure import peak_memory

CPU = torch.device("cpu")


def test_a_step_by_hand() -> None:
    weight = torch.zeros(1000, 1000)
    with peak_memory([weight, weight.T, weight[:10]], CPU) as peak:
        first = weight + 1  # 8 MB
        second = first + 1  # 12 MB
        del first
        third = second[:500] * 2  # 10 MB
    assert peak.n_bytes == pytest.approx(12_000_000, abs=64)  # the scalars are tensors too
    del second, third


def test_blocks_that_allocate_nothing_have_what_was_there() -> None:
    resident = torch.zeros(100)
    with peak_memory([resident], CPU) as peak:
        resident.add_(1)
    assert peak.n_bytes == pytest.approx(400, abs=64)


def test_a_training_step_against_counted_tensors() -> None:
    """Saved activations live in C++ only; a linear chain of known sizes makes them countable by hand."""
    n, width, depth = 512, 256, 4
    model = nn.Sequential(*[nn.Linear(width, width, bias=False) for _ in range(depth)])
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    batch = torch.randn(n, width)

    def step() -> None:
        model(batch).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    moments = [tensor for fields in optimizer.state.values() for tensor in fields.values()]
    with peak_memory([*model.parameters(), *moments, batch], CPU) as peak:
        step()
    parameter, activation = 4 * width * width, 4 * n * width
    resident = 3 * depth * parameter + activation
    # At its worst, backward holds all activations but the freed ones, the gradients so far, and two of the flow.
    ways = [
        (depth - done) * activation + done * parameter + flow * activation
        for done in range(1, depth + 1)
        for flow in (1, 2)
    ]
    assert peak.n_bytes is not None
    assert resident + depth * activation <= peak.n_bytes <= resident + max(ways) + activation
    with torch.no_grad(), peak_memory([*model.parameters(), *moments, batch], CPU) as forward:
        model(batch)
    assert forward.n_bytes == pytest.approx(resident + 2 * activation, abs=64)


def test_what_was_noted_of_a_step_goes_with_it() -> None:
    def n_profiles() -> int:
        return sum(type(each) is torch.autograd.profiler.profile for each in gc.get_objects())

    gc.disable()  # which would find them at last, after hundreds of megabytes
    try:
        before = n_profiles()
        with peak_memory([], torch.device("cpu")) as peak:
            torch.ones(100) + 1
        assert peak.n_bytes
        assert n_profiles() == before
    finally:
        gc.enable()
