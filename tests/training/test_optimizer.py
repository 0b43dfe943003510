"""Optimizers and gradient checkpointing in the training loop: segments equal one long run with each of them."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import bitsandbytes
import pytest
import torch

from autopeft.models.attach import attach
from autopeft.models.base import load_base
from autopeft.spec.design import Design
from autopeft.spec.training import Training
from autopeft.spec.trial import Segment, SegmentStatus
from autopeft.tasks.base import PreparedData
from autopeft.training.checkpoint import Checkpoint
from autopeft.training.optimizer import load_optimizer_state, make_optimizer, optimizer_state
from autopeft.training.worker import Worker, WorkerSetup
from tests.costs.real_run import HEAD

MakeSegment = Callable[..., Segment]
# The prefix has more than 4,096 numbers: bitsandbytes keeps its moments in 8 bits, and the others' in fp32.
WIDE = Design.from_dict({"blocks": [{"prefix": {"length": 160, "layers": [1]}}, {"lora": {"rank": 2}}]})
RATES = {"prefix": 1e-2, "lora": 1e-2, "head": 1e-3}
STOP = 40


def worker_for(tiny_bert: str, training: Training, data: PreparedData, **settings: Any) -> Worker:
    return Worker(WorkerSetup(model=tiny_bert, training=training.model_copy(update=settings), data=data))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit", "sgd"])
def test_segments_equal_one_run(
    tiny_bert: str, training: Training, data: PreparedData, segment: MakeSegment, optimizer: str, checkpointing: bool
) -> None:
    worker = worker_for(tiny_bert, training, data, optimizer=optimizer, checkpointing=checkpointing)
    made = segment(design=WIDE, learning_rates=RATES, stop=STOP)
    whole = worker.run(made)
    assert whole.status is SegmentStatus.DONE, whole.error
    first = worker.run(replace(made, stop=16))
    assert first.checkpoint is not None
    fields = {name.rpartition("/")[2] for name in Checkpoint.from_bytes(first.checkpoint).optimizer}
    assert (
        fields
        == {
            "adamw": {"step", "exp_avg", "exp_avg_sq"},
            "adamw_8bit": {"step", "state1", "state2", "absmax1", "absmax2"},
            "sgd": set(),
        }[optimizer]
    )
    second = worker.run(replace(made, start=first.examples, checkpoint=first.checkpoint))
    assert (*first.losses, *second.losses) == whole.losses
    assert second.checkpoint == whole.checkpoint


def test_checkpointing_changes_no_loss(
    tiny_bert: str, training: Training, data: PreparedData, segment: MakeSegment
) -> None:
    """With dropout, in the base and in LoRA: its masks are drawn again, and the generator goes on as without."""
    design = Design.from_dict(
        {"blocks": [{"lora": {"rank": 2, "dropout": 0.3}}, {"prefix": {"length": 2, "gate": True}}]}
    )
    results = [
        worker_for(tiny_bert, training, data, checkpointing=checkpointing).run(segment(design=design, stop=STOP))
        for checkpointing in (False, True)
    ]
    assert results[0].losses == results[1].losses
    assert len(set(results[0].losses)) > 3
    assert results[0].checkpoint == results[1].checkpoint
    assert results[1].measured.peak_memory < results[0].measured.peak_memory  # type: ignore[operator]


def test_optimizers_make_different_steps(
    tiny_bert: str, training: Training, data: PreparedData, segment: MakeSegment
) -> None:
    ends = []
    for optimizer in ("adamw", "adamw_8bit", "sgd"):
        worker = worker_for(tiny_bert, training, data, optimizer=optimizer)
        saved = worker.run(segment(design=WIDE, learning_rates=RATES, stop=STOP)).checkpoint
        assert saved is not None
        ends.append(Checkpoint.from_bytes(saved).adapter)
    for one, other in itertools.combinations(ends, 2):
        assert any(not torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_state_of_another_optimizer_is_refused(
    tiny_bert: str, training: Training, data: PreparedData, segment: MakeSegment
) -> None:
    saved = worker_for(tiny_bert, training, data).run(segment(stop=8)).checkpoint
    for optimizer in ("adamw_8bit", "sgd"):
        worker = worker_for(tiny_bert, training, data, optimizer=optimizer)
        result = worker.run(segment(start=8, checkpoint=saved))
        assert result.status is SegmentStatus.FAILED
        assert "optimizer" in result.error.splitlines()[-1]


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit", "sgd"])
def test_a_state_travels_whole(tiny_bert: str, training: Training, optimizer: str) -> None:
    """Two more steps from a restored state and from the original one end in the same weights."""
    chosen = training.model_copy(update={"optimizer": optimizer})
    base, ends = load_base(tiny_bert, HEAD), []
    with attach(base, WIDE) as attached:
        parameters = [parameter for group in attached.groups.values() for parameter in group]
        first = make_optimizer(attached, RATES, chosen)
        step(first, parameters, n=2)
        weights, state = attached.state(), optimizer_state(first, attached)
        restored = make_optimizer(attached, RATES, chosen)
        load_optimizer_state(restored, attached, state)
        for each in (first, restored):
            attached.load_state(weights)
            step(each, parameters, n=2)
            ends.append(attached.state())
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())
    assert any(not torch.equal(tensor, weights[name]) for name, tensor in ends[0].items())


def step(optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], n: int) -> None:
    generator = torch.Generator().manual_seed(5)
    for _ in range(n):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def test_eight_bits_are_those_of_bitsandbytes(tiny_bert: str, training: Training) -> None:
    chosen = training.model_copy(update={"optimizer": "adamw_8bit"})
    with attach(load_base(tiny_bert, HEAD), WIDE) as attached:
        optimizer = make_optimizer(attached, RATES, chosen)
    assert isinstance(optimizer, bitsandbytes.optim.AdamW8bit)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, chosen.weight_decay}
