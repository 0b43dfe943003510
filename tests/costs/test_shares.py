"""What blocks add to a layer, told of all sizes from one run where the size is a factor: as a run of each says."""

from typing import Any

import numpy as np
import pytest

from autopeft.costs.parts import without_layers
from autopeft.costs.quantized import quantize_meta
from autopeft.costs.share import Share
from autopeft.costs.shares import Shares, factor_for
from autopeft.costs.shortened import shorten
from autopeft.costs.simulated_step import Machine
from autopeft.models.base import Base, build_meta
from autopeft.spec.block import Block
from autopeft.spec.cost import Workload
from autopeft.spec.design import Design
from autopeft.spec.model import Head

WORKLOAD = Workload.uniform(batch_size=4, n_tokens=32)
BLOCKS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("lora", {"roles": "all"}),
    ("lora", {"roles": ["query", "value"], "freeze_a": True, "dropout": 0.1}),
    ("lora", {"roles": "all", "dora": True}),
    ("lora", {"roles": "all", "gate": True}),
    ("vera", {"roles": "all"}),
    ("loha", {"roles": "all"}),
    ("shira", {"roles": ["query", "value"]}),
    ("adapter", {"mode": "serial", "at": ["mlp"]}),
    ("adapter", {"mode": "parallel", "at": ["attention", "mlp"], "gate": True}),
    ("adapter", {"mode": "serial", "at": ["attention"], "experts": 4}),
)


@pytest.fixture(scope="module")
def base(minilm: str) -> Base:
    return build_meta(minilm, Head(auto_class="AutoModelForSequenceClassification", labels=("negative", "positive")))


def blocks(size: int, quantization: str) -> list[Block]:
    """Return blocks of a size that may stand over a storage."""
    described = [{kind: {**settings, "size" if kind == "adapter" else "rank": size}} for kind, settings in BLOCKS]
    legal = [each for each in described if quantization == "none" or "shira" not in each]
    return [Design.from_dict({"blocks": [each]}).blocks[0] for each in legal]


def learn(base: Base, blocks: list[Block], precision: str, quantization: str) -> list[Share]:
    machine = Machine(device="cpu", precision=precision, n_threads=1)
    short = quantize_meta(shorten(base, 1), quantization, precision)
    shares = Shares(short, WORKLOAD, machine, None, lambda *_: None)
    return [share for block in blocks for share in shares.of(block, without_layers(block))]


@pytest.mark.parametrize(
    ("precision", "quantization"),
    [
        ("fp32", "none"),
        pytest.param("bf16", "none", marks=pytest.mark.slow),
        pytest.param("bf16", "nf4", marks=pytest.mark.slow),
    ],
)
def test_what_is_told_of_a_size_is_what_a_run_at_it_says(
    base: Base, precision: str, quantization: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_size = [blocks(size, quantization) for size in (2, 16, 48)]
    told = learn(base, [block for each in by_size for block in each], precision, quantization)
    for kind in {type(block) for block in by_size[0]}:
        assert kind.size_is_factor
        monkeypatch.setattr(kind, "size_is_factor", False)
    measured = [share for each in by_size for share in learn(base, each, precision, quantization)]
    atol = 1 if precision == "fp32" else 100_000  # what oneDNN packs for itself follows sizes in steps
    for one, other in zip(told, measured, strict=True):
        for a, b in ((one.curve, other.curve), (one.growth, other.growth)):
            np.testing.assert_allclose(a.net, b.net, atol=1)
            np.testing.assert_allclose(a.high, b.high, atol=atol)
            np.testing.assert_allclose(a.flops, b.flops, atol=1)
        for name in ("keeps", "reads", "diverts", "computes", "first", "reads_weights"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), name


def test_the_factor_divides_no_dimension(base: Base) -> None:
    sizes = {size for tensor in base.model.parameters() for size in tensor.shape}
    factor = factor_for(base, Workload.uniform(batch_size=61, n_tokens=67 * 2))
    assert factor not in (None, 61, 67)
    assert all(size % factor for size in sizes)
