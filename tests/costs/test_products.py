"""What a bf16 product packs on a CPU: as told from a probe, and as the allocator gave it."""

import pytest
import torch

from autopeft.costs import kernel_scratch, products
from autopeft.costs.kernel_scratch import Shape
from autopeft.costs.products import packed_bytes
from tests import hardware
from tests.costs.real_run import allocated_peak

MATRICES = {
    "forward": lambda n_rows, n_read, n_made: (torch.zeros(n_rows, n_read), torch.zeros(n_made, n_read).t()),
    "backward": lambda n_rows, n_read, n_made: (torch.zeros(n_rows, n_made), torch.zeros(n_made, n_read)),
    "gradient": lambda n_rows, n_read, n_made: (torch.zeros(n_rows, n_made).t(), torch.zeros(n_rows, n_read)),
}
"""The products of a linear layer [read, made]: its output, its input's gradient and its weight's."""


def matrices(kind: str, sizes: tuple[int, int, int], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    left, right = (matrix.to(dtype) for matrix in MATRICES[kind](*sizes))
    return left, right


def peak(left: torch.Tensor, right: torch.Tensor, n_threads: int) -> int:
    """Return what a product takes besides its result."""
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        return allocated_peak(lambda: torch.mm(left, right)) - left.shape[0] * right.shape[1] * left.itemsize
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("sizes", [(8, 384, 1536), (300, 384, 384), (512, 1536, 384), (1024, 64, 8), (64, 512, 3000)])
@pytest.mark.parametrize("kind", MATRICES)
def test_a_product_in_bf16_packs_what_the_allocator_gave_it(
    kind: str, sizes: tuple[int, int, int], n_threads: int
) -> None:
    left, right = matrices(kind, sizes, torch.bfloat16)
    assert packed_bytes(left, right, n_threads) == peak(left, right, n_threads)


@pytest.mark.parametrize("kind", MATRICES)
def test_a_slice_is_asked_for_as_its_whole(kind: str) -> None:
    left, right = (
        torch.cat([matrix, matrix], dim=int(matrix.is_contiguous())).narrow(int(matrix.is_contiguous()), 0, size)
        for matrix in matrices(kind, (256, 384, 384), torch.bfloat16)
        for size in [matrix.shape[int(matrix.is_contiguous())]]
    )
    assert packed_bytes(left, right, 1) == peak(left, right, 1)


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("sizes", [(700, 3000, 2000), (2048, 1024, 1024), (100, 4000, 5000)])
def test_what_would_take_long_is_asked_for_at_a_smaller_shape(
    sizes: tuple[int, int, int], n_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As good as the tensors that a step keeps anyway are large; and better than nothing, over all three products."""
    hardware.require(hardware.has_fast_bf16(), "bf16 products of oneDNN (AVX512)")
    told, real, given = 0, 0, 0
    products_of_it = [matrices(kind, sizes, torch.bfloat16) for kind in MATRICES]
    for left, right in products_of_it:
        n_bytes, n_real = packed_bytes(left, right, n_threads), peak(left, right, n_threads)
        n_given = left.nbytes + right.nbytes + 2 * left.shape[0] * right.shape[1]
        assert abs(n_bytes - n_real) <= 0.08 * n_threads * n_given
        told, real, given = told + n_bytes, real + n_real, given + n_given
    assert 0.5 <= told / real <= 2
    monkeypatch.setattr(kernel_scratch, "_allocated_and_freed", lambda _: pytest.fail("asked again"))
    assert told == sum(packed_bytes(left, right, n_threads) for left, right in products_of_it)


def test_a_probe_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is asked for: a head of a hundred thousand words, and one row."""
    seen: list[int] = []

    def remember(_operator: object, given: tuple[Shape, Shape], *_: object) -> int:
        (n_rows, n_inner), (_, n_columns) = (shape.sizes for shape in given)
        seen.append(2 * (n_rows * n_inner + n_inner * n_columns + n_rows * n_columns))
        assert n_rows * n_inner * n_columns <= 2**29
        return 1

    monkeypatch.setattr(products, "asked", remember)
    for sizes in ((1, 8192, 128_256), (4, 128_256, 8192), (100_000, 4096, 4096), (1, 1, 2**26)):
        assert products.packed_bytes_of(*sizes, torch.bfloat16, 1) == 1
    assert max(seen) <= 2**25


def test_a_product_in_fp32_packs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "asked", lambda *_: pytest.fail("asked"))
    left, right = matrices("forward", (300, 384, 384), torch.float32)
    assert packed_bytes(left, right, 1) == peak(left, right, 1) == 0
