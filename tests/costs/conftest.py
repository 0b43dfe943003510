"""Bases with and without weights, made once."""

from collections.abc import Callable, Iterator

import pytest
import torch

from autopeft.costs.estimator import Estimator
from autopeft.models.base import Base, build_meta, load_base
from autopeft.spec.cost import Workload
from tests.costs.real_run import HEAD
from tests.hardware import step_shape

BATCH_SIZE, N_TOKENS = 8, 32


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Compute on one thread: workspaces are then the same on every machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def loaded(minilm: str) -> Callable[..., Base]:
    """Return a function that loads MiniLM with weights; the last one asked for is kept."""
    kept: dict[tuple[str, str, str], Base] = {}

    def load(quantization: str = "none", precision: str = "fp32", kernel: str = "sdpa") -> Base:
        key = (quantization, precision, kernel)
        if key not in kept:
            kept.clear()
            kept[key] = load_base(minilm, HEAD, quantization=quantization, precision=precision, kernel=kernel)
        return kept[key]

    return load


@pytest.fixture(scope="session")
def estimator(minilm: str) -> Callable[..., Estimator]:
    """Return a function that makes an estimator of MiniLM on the meta device, for batches of `step_shape`."""
    bases: dict[str, Base] = {}

    def make(
        precision: str = "fp32",
        kernel: str = "sdpa",
        device: str = "cpu",
        batch_size: int | None = None,
        evaluation_batch_size: int | None = None,
        max_tokens: int | None = None,
    ) -> Estimator:
        usual = step_shape(precision, BATCH_SIZE, N_TOKENS)
        batch_size = batch_size or usual[0]
        max_tokens = max_tokens or usual[1]
        if kernel not in bases:
            bases[kernel] = build_meta(minilm, HEAD, kernel=kernel)
        workload = Workload(
            batch_size=batch_size,
            evaluation_batch_size=evaluation_batch_size or usual[0],
            max_tokens=max_tokens,
            n_steps=10,
            n_examples=10 * batch_size,
            n_train_tokens=10 * batch_size * max_tokens,
        )
        return Estimator(bases[kernel], workload=workload, precision=precision, kernel=kernel, device=device)

    return make
