"""Workspaces of CUDA's kernels, by examples worked out from their source; no GPU has confirmed them."""

import pytest
import torch

from autopeft.costs.kernels import scratch_formulas

EFFICIENT_BACKWARD = torch.ops.aten._scaled_dot_product_efficient_attention_backward


@pytest.fixture(scope="module")
def formulas() -> dict:
    import bitsandbytes  # noqa: F401  registers its operators

    return scratch_formulas("cuda", n_threads=1)


@pytest.mark.parametrize(
    ("dtype", "tokens", "channels", "tile", "n_tiles"),
    [
        (torch.bfloat16, 768, 128, 128, 6),  # 128 x 128: six tiles of queries, one of channels
        (torch.bfloat16, 100, 64, 64, 2),
        (torch.float32, 100, 128, 64, 4),
    ],
)
def test_efficient_attention_sums_the_query_s_gradient_up_in_tiles(
    formulas, dtype: torch.dtype, tokens: int, channels: int, tile: int, n_tiles: int
):
    query = torch.empty(2, 4, tokens, channels, dtype=dtype, device="meta")
    n_heads = 2 * 4
    assert formulas[EFFICIENT_BACKWARD](query, query) == n_heads * 4 * (n_tiles * (tile * tile + 4) + tokens)


@pytest.mark.parametrize(("rows", "dequantized"), [(1, False), (4, False), (5, True), (2048, True)])
def test_a_4_bit_weight_is_dequantized_for_more_than_four_rows(formulas, rows: int, dequantized: bool):
    hidden = torch.empty(rows, 1, 256, dtype=torch.bfloat16, device="meta")
    scales = torch.empty(512 * 256 // 64, dtype=torch.uint8, device="meta")
    n_bytes = formulas[torch.ops.bitsandbytes.gemm_4bit](
        hidden, None, [512, 256], None, 64, "nf4", bias=None, absmax_8bit=scales
    )
    assert n_bytes == (512 * 256 * 2 + 2 * 4 * scales.numel() if dequantized else 0)


@pytest.mark.parametrize(("dtype", "per_sum"), [(torch.float16, 4), (torch.bfloat16, 4 + 2), (torch.float32, 4 + 2)])
def test_an_int8_product_holds_integer_sums_and_a_result_in_fp16(formulas, dtype: torch.dtype, per_sum: int):
    hidden = torch.empty(10, 64, dtype=dtype, device="meta")
    result = torch.empty(10, 32, dtype=dtype, device="meta")
    assert formulas[torch.ops.bitsandbytes.int8_mixed_scaled_mm](hidden, out_val=(result,)) == per_sum * 10 * 32
