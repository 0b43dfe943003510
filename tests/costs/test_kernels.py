import pytest
import torch

from autopeft.costs.cuda import CudaKernels
from autopeft.costs.kernels import scratch_formulas
from autopeft.costs.tracker import StorageTracker
from tests.costs.real_run import allocated_peak

FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
SHAPES = [(2, 4, 64, 32), (2, 4, 128, 32), (1, 4, 300, 64), (1, 2, 1024, 64)]


def heads(shape: tuple[int, ...], dtype: torch.dtype, *, by_token: bool = True) -> torch.Tensor:
    """Return a tensor [batch, head, token, channel], laid out as attention modules make it, or densely."""
    batch, n_heads, n_tokens, size = shape
    if by_token:
        return torch.randn(batch, n_tokens, n_heads, size).to(dtype).transpose(1, 2)
    return torch.randn(shape).to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("by_token", [True, False])
def test_flash_attention_on_a_cpu_takes_what_the_allocator_gave_it(
    shape: tuple[int, ...], dtype: torch.dtype, by_token: bool
):
    query, key, value = (heads(shape, dtype) for _ in range(3))
    grad = heads(shape, dtype, by_token=by_token)
    output, sums = FLASH(query, key, value)
    formulas = scratch_formulas("cpu", n_threads=1)

    forward = allocated_peak(lambda: FLASH(query, key, value))
    backward = allocated_peak(lambda: FLASH_BACKWARD(grad, query, key, value, output, sums, 0.0, False))
    predicted_forward = output.nbytes + sums.nbytes + formulas[FLASH](query, key, value)
    predicted_backward = 3 * query.nbytes + formulas[FLASH_BACKWARD](grad, query, key, value)
    if dtype == torch.float32:
        assert predicted_forward == forward
        assert predicted_backward == backward
    else:  # oneDNN's own pieces are left out
        assert predicted_forward == pytest.approx(forward, rel=0.02)
        assert predicted_backward == pytest.approx(backward, rel=0.2)


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div", "add_", "mul_"])
@pytest.mark.parametrize("dtypes", [("bfloat16", "float32"), ("float32", "bfloat16"), ("float32", "float32")])
@pytest.mark.parametrize("sizes", [((64, 32), (64, 32)), ((64, 32), (32,)), ((64, 32), ())])
def test_arithmetic_on_a_cpu_copies_what_has_another_dtype(
    name: str, dtypes: tuple[str, str], sizes: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    left, right = (torch.ones(size, dtype=getattr(torch, dtype)) for size, dtype in zip(sizes, dtypes, strict=True))
    operator = getattr(torch.ops.aten, name)
    made = operator(left, right)
    new_bytes = 0 if made is left else made.nbytes
    scratch = scratch_formulas("cpu", n_threads=1)[operator](left, right, out_val=made)
    assert new_bytes + scratch == pytest.approx(allocated_peak(lambda: operator(left, right)), abs=8)  # one number


def attention_bytes(device: str, *, masked: bool, dtype: torch.dtype = torch.float32) -> int:
    """Return what one attention keeps for its backward, besides its inputs."""
    query, key, value = (torch.empty(2, 4, 64, 32, dtype=dtype, device="meta", requires_grad=True) for _ in range(3))
    mask = torch.empty(2, 1, 64, 64, dtype=torch.bool, device="meta") if masked else None
    tracker = StorageTracker()
    tracker.register([query, key, value], "base")
    modes = [CudaKernels()] if device == "cuda" else []
    with tracker:
        for mode in modes:
            mode.__enter__()
        output = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        for mode in modes:
            mode.__exit__(None, None, None)
        assert output.shape == query.shape
        return tracker.live_bytes["activations"]


def test_cuda_keeps_the_output_and_a_sum_for_each_query():
    """Flash and memory-efficient attention keep no scores; the mask becomes a bias of the input's dtype."""
    n_queries = 2 * 4 * 64
    output = n_queries * 32
    seed_bytes = 64  # seed and offset of the dropout's generator
    assert attention_bytes("cuda", masked=False, dtype=torch.bfloat16) == pytest.approx(
        2 * output + 4 * n_queries, abs=seed_bytes
    )
    assert attention_bytes("cuda", masked=False) == pytest.approx(4 * output + 4 * n_queries, abs=seed_bytes)
    bias = 4 * 2 * 64 * 64
    assert attention_bytes("cuda", masked=True) == pytest.approx(4 * output + 4 * n_queries + bias, abs=seed_bytes)


def test_cuda_keeps_one_byte_for_each_element_that_dropout_may_drop():
    hidden = torch.empty(128, 256, device="meta", requires_grad=True)
    with StorageTracker() as tracker, CudaKernels():
        dropped = torch.nn.functional.dropout(hidden, 0.1, training=True)
        assert tracker.live_bytes["activations"] == hidden.numel() * (4 + 1)
    assert dropped.shape == hidden.shape


def test_cuda_computes_norms_in_fp32_under_autocast():
    hidden = torch.empty(128, 256, device="cpu", dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16), CudaKernels():
        assert torch.nn.functional.layer_norm(hidden, (256,)).dtype == torch.float32
        assert torch.nn.functional.softmax(hidden, dim=-1).dtype == torch.float32
