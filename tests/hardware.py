"""What tests need of the machine: they ask for it, and the summary counts what was skipped for the lack of it."""

from collections import Counter
from collections.abc import Iterable

import pytest

REASON = "needs hardware that is not here: "


def has_fast_bf16() -> bool:
    """Return whether oneDNN has kernels for bf16 here; torch's own take ten to thirty times as long as fp32."""
    import torch  # heavy: most tests need none

    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def step_shape(precision: str, batch_size: int, n_tokens: int) -> tuple[int, int]:
    """Return the shape of a batch for a real step: a smaller one where the precision is slow on this machine."""
    if precision == "fp32" or has_fast_bf16():
        return batch_size, n_tokens
    return min(batch_size, 2), min(n_tokens, 16)


def require(is_there: bool, what: str) -> None:
    """Skip a test on a machine that lacks something, in words that the summary repeats."""
    if not is_there:
        pytest.skip(REASON + what)


def missing(skipped: Iterable[pytest.TestReport]) -> Counter[str]:
    """Return how many tests were skipped for the lack of each thing."""
    reasons = (str(report.longrepr[2]) for report in skipped if isinstance(report.longrepr, tuple | list))
    return Counter(reason.partition(REASON)[2] for reason in reasons if REASON in reason)
