"""What is random, shared or computed in a technique is the same in a training that was cut into segments."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from autopeft.spec.design import Design
from autopeft.spec.trial import Segment
from autopeft.training.worker import Worker


@pytest.mark.parametrize(
    "blocks",
    [
        [{"adapter": {"size": 4, "experts": 3}}],
        [{"compacter": {"size": 8}}],
        [
            {"adapter": {"size": 4, "gate": True}},
            {"adapter": {"size": 4, "mode": "parallel", "layers": [1]}},
        ],
        [{"prompt": {"length": 4, "encoder": "lstm", "encoder_hidden_size": 8}}],
        [{"prefix": {"length": 4, "projection": True, "projection_size": 8, "gate": True}}],
    ],
    ids=["AdaMix", "Compacter", "serial and parallel", "prompt from an LSTM", "gated prefix from an MLP"],
)
def test_segments_equal_one_run(worker: Worker, segment: Callable[..., Segment], blocks: list[dict[str, Any]]) -> None:
    design = Design.from_dict({"blocks": blocks})
    rates = {design.kinds[0]: 5e-3, "head": 1e-2}
    whole = worker.run(segment(design=design, learning_rates=rates, stop=90))
    first = worker.run(segment(design=design, learning_rates=rates, stop=40))
    rest = segment(design=design, learning_rates=rates, stop=90)
    second = worker.run(replace(rest, start=first.examples, checkpoint=first.checkpoint))
    assert tuple(itertools.chain(first.losses, second.losses)) == whole.losses
    assert second.checkpoint == whole.checkpoint
    assert second.predictions == whole.predictions
