"""Settled decision 6: a run cut into segments is the run at once, step by step and bit by bit."""

import itertools
import time
from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import pytest
import torch
from transformers import BertForSequenceClassification

from autopeft.errors import ArtifactError
from autopeft.spec.design import Design
from autopeft.spec.training import Splits, Training
from autopeft.spec.trial import Segment, SegmentResult, SegmentStatus
from autopeft.tasks.base import PreparedData
from autopeft.tasks.prepare import prepare
from autopeft.training.checkpoint import Checkpoint
from autopeft.training.worker import Worker, WorkerSetup
from tests.tasks.generated import reviews
from tests.training.conftest import LORA

MakeSegment = Callable[..., Segment]


def in_segments(worker: Worker, whole: Segment, stops: list[int]) -> list[SegmentResult]:
    results: list[SegmentResult] = []
    for stop in stops:
        before = results[-1] if results else None
        start, checkpoint = (before.examples, before.checkpoint) if before else (0, None)
        results.append(worker.run(replace(whole, start=start, stop=stop, checkpoint=checkpoint)))
        assert results[-1].status is SegmentStatus.DONE, results[-1].error
    return results


@pytest.mark.parametrize("stops", [[40, 41, 225], [90, 180, 225], [225]])
def test_segments_equal_one_run(worker: Worker, segment: MakeSegment, stops: list[int]) -> None:
    whole = worker.run(segment())
    assert whole.status is SegmentStatus.DONE, whole.error
    worker.run(segment(trial=1, seed=99, design=Design()))  # another trial in between must not matter
    pieces = in_segments(worker, segment(), stops)
    assert tuple(itertools.chain.from_iterable(piece.losses for piece in pieces)) == whole.losses
    assert pieces[-1].scores == whole.scores
    assert pieces[-1].predictions == whole.predictions
    assert pieces[-1].checkpoint == whole.checkpoint
    assert len(whole.losses) == 30
    assert len(set(whole.losses)) == 30


def test_segments_equal_one_run_with_bf16(
    tiny_bert: str, training: Training, data: PreparedData, segment: MakeSegment
) -> None:
    training = training.model_copy(update={"precision": "bf16", "kernel": "eager"})
    worker = Worker(WorkerSetup(model=tiny_bert, training=training, data=data))
    pieces = in_segments(worker, segment(), [64, 225])
    assert (*pieces[0].losses, *pieces[1].losses) == worker.run(segment()).losses


def test_segments_equal_one_run_on_a_real_model(minilm: str, segment: MakeSegment) -> None:
    training = Training(epochs=1, batch_size=8, precision="fp32", kernel="sdpa", device="cpu")
    data = prepare(reviews(60), model=minilm, splits=Splits(train=40), training=training)
    worker = Worker(WorkerSetup(model=minilm, training=training, data=data))
    pieces = in_segments(worker, segment(), [10, 40])
    assert (*pieces[0].losses, *pieces[1].losses) == worker.run(segment()).losses


def test_hybrids_train_in_segments(worker: Worker, segment: MakeSegment) -> None:
    design = Design.from_dict(
        {
            "blocks": [
                {"lora": {"rank": 2, "roles": ["query"], "layers": [1]}},
                {"adapter": {"size": 4, "mode": "parallel"}},
                {"prefix": {"length": 3, "layers": [0]}},
            ]
        }
    )
    whole = worker.run(segment(design=design, stop=90))
    pieces = in_segments(worker, segment(design=design), [40, 90])
    assert (*pieces[0].losses, *pieces[1].losses) == whole.losses
    assert pieces[-1].checkpoint == whole.checkpoint


@pytest.mark.parametrize("stops", [[40, 41, 225], [104, 112, 225], [225]])
def test_adalora_chooses_the_same_triplets_in_segments(worker: Worker, segment: MakeSegment, stops: list[int]) -> None:
    """Cut in the warm-up, while the budget falls, and around the step that makes the last choice."""
    design = Design.from_dict({"blocks": [{"adalora": {"rank": 2, "initial_rank": 4, "dropout": 0.1, "interval": 3}}]})
    whole = worker.run(segment(design=design))
    assert whole.status is SegmentStatus.DONE, whole.error
    pieces = in_segments(worker, segment(design=design), stops)
    assert tuple(itertools.chain.from_iterable(piece.losses for piece in pieces)) == whole.losses
    assert pieces[-1].checkpoint == whole.checkpoint
    assert whole.checkpoint is not None
    final = Checkpoint.from_bytes(whole.checkpoint)
    values = torch.cat([tensor.T for name, tensor in final.adapter.items() if ".lora_E." in name])
    assert int((values != 0).sum()) == 2 * len(values)
    assert final.optimizer == {}, "what AdaLoRA remembers ends with the training"


def test_a_checkpoint_without_what_a_technique_remembers_is_refused(worker: Worker, segment: MakeSegment) -> None:
    design = Design.from_dict({"blocks": [{"adalora": {"rank": 2, "roles": ["query"]}}]})
    saved = worker.run(segment(design=design, stop=8)).checkpoint
    assert saved is not None
    checkpoint = Checkpoint.from_bytes(saved)
    optimizer = {name: tensor for name, tensor in checkpoint.optimizer.items() if name != "adalora/mask"}
    broken = replace(checkpoint, optimizer=optimizer).to_bytes()
    result = worker.run(segment(design=design, start=8, checkpoint=broken))
    assert result.status is SegmentStatus.FAILED
    assert "adalora/mask is missing" in result.error


def test_the_whole_model_trains_in_segments(worker: Worker, segment: MakeSegment) -> None:
    design = Design.from_dict({"blocks": [{"full": {"embeddings": True}}]})
    rates = {"full": 1e-3, "head": 1e-3}
    whole = worker.run(segment(design=design, learning_rates=rates))
    pieces = in_segments(worker, segment(design=design, learning_rates=rates), [40, 90, 225])
    assert [loss for piece in pieces for loss in piece.losses] == list(whole.losses)
    assert pieces[-1].checkpoint == whole.checkpoint
    after = worker.run(segment(stop=16))
    assert after.status is SegmentStatus.DONE, "the base is as it was"


def test_lora_variants_train_in_segments(worker: Worker, segment: MakeSegment) -> None:
    design = Design.from_dict(
        {
            "blocks": [
                {"lora": {"rank": 2, "roles": ["query"], "freeze_a": True}},
                {"lora": {"rank": 2, "roles": ["value"], "b_rate_ratio": 16}},
                {"lora": {"rank": 2, "roles": ["mlp_up"], "gate": True}},
            ]
        }
    )
    whole = worker.run(segment(design=design, stop=90))
    pieces = in_segments(worker, segment(design=design), [40, 90])
    assert (*pieces[0].losses, *pieces[1].losses) == whole.losses
    assert pieces[-1].checkpoint == whole.checkpoint


def test_the_penalty_trains_but_is_no_loss(worker: Worker, segment: MakeSegment) -> None:
    def result(orthogonality: float) -> SegmentResult:
        block = {"adalora": {"rank": 2, "roles": ["query"], "orthogonality": orthogonality}}
        return worker.run(segment(design=Design.from_dict({"blocks": [block]}), stop=16))

    with_it, without = result(10.0), result(0.0)
    assert with_it.losses[0] == without.losses[0], "the first loss does not know of it"
    assert with_it.checkpoint is not None
    assert without.checkpoint is not None
    moved = [Checkpoint.from_bytes(r).adapter for r in (with_it.checkpoint, without.checkpoint)]
    name = next(name for name in moved[0] if ".lora_A." in name)
    assert not torch.equal(moved[0][name], moved[1][name])


def test_dropout_is_on_and_follows_the_seed(
    worker: Worker, tiny_bert: str, training: Training, data: PreparedData, segment: MakeSegment
) -> None:
    torch.manual_seed(1)
    first = worker.run(segment(stop=8)).losses
    torch.manual_seed(2)
    assert worker.run(segment(stop=8)).losses == first, "torch's own generator has no say"
    state = torch.get_rng_state()
    fresh = Worker(WorkerSetup(model=tiny_bert, training=training, data=data))
    assert fresh.run(segment(stop=8)).losses == first
    assert torch.equal(torch.get_rng_state(), state), "nor is it changed"
    model = fresh._bases["none"].model
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    assert fresh.run(segment(stop=8)).losses != first


def test_training_learns(tiny_bert: str, training: Training, data: PreparedData, segment: MakeSegment) -> None:
    training = training.model_copy(update={"epochs": 15})
    worker = Worker(WorkerSetup(model=tiny_bert, training=training, data=data))
    result = worker.run(segment(learning_rates={"lora": 2e-2, "head": 1e-2}))
    assert result.scores["accuracy"] > 0.8
    assert sum(result.losses[-5:]) < 0.7 * sum(result.losses[:5])


def test_learning_rates_act_on_their_own_block(worker: Worker, segment: MakeSegment) -> None:
    def adapter(**rates: float) -> dict[str, torch.Tensor]:
        result = worker.run(segment(learning_rates=rates, stop=16))
        assert result.checkpoint is not None
        return dict(Checkpoint.from_bytes(result.checkpoint).adapter)

    start = worker.run(segment(stop=0, full=225, learning_rates={}))
    assert start.status is SegmentStatus.DONE
    frozen_lora, frozen_head = adapter(lora=0.0, head=1e-2), adapter(lora=1e-2, head=0.0)
    moved = {name for name, tensor in frozen_lora.items() if not torch.equal(tensor, frozen_head[name])}
    assert moved == frozen_lora.keys() - {
        name for name in frozen_lora if torch.equal(frozen_lora[name], frozen_head[name])
    }
    assert any("lora" in name for name in moved)
    assert any("classifier" in name for name in moved)
    both = adapter(lora=0.0, head=0.0)
    assert all(torch.equal(both[name], tensor) for name, tensor in frozen_lora.items() if "lora" in name)
    assert all(torch.equal(both[name], tensor) for name, tensor in frozen_head.items() if "lora" not in name)


@pytest.mark.parametrize("rates", [{"lora": float("inf"), "head": 1e-3}, {"lora": 1e30, "head": 1e30}])
def test_divergence_is_an_outcome(worker: Worker, segment: MakeSegment, rates: dict[str, float]) -> None:
    result = worker.run(segment(learning_rates=rates))
    assert result.status is SegmentStatus.DIVERGED
    assert "step" in result.error or "not finite" in result.error
    assert result.checkpoint is None
    assert result.scores == {}
    again = worker.run(segment())
    assert again.status is SegmentStatus.DONE, "the next trial does not suffer"


def test_a_nan_in_the_last_step_is_found_by_the_evaluation(worker: Worker, segment: MakeSegment) -> None:
    saved = worker.run(segment(stop=8)).checkpoint
    assert saved is not None
    checkpoint = Checkpoint.from_bytes(saved)
    broken = replace(checkpoint, adapter={name: tensor * float("nan") for name, tensor in checkpoint.adapter.items()})
    result = worker.run(segment(start=8, stop=8, checkpoint=broken.to_bytes()))
    assert result.status is SegmentStatus.DIVERGED
    assert "40 of 40 outputs are not finite" in result.error
    assert result.checkpoint is None


def test_should_stop_returns_at_once_with_a_checkpoint(worker: Worker, segment: MakeSegment) -> None:
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 5

    result = worker.run(segment(), should_stop)
    assert result.status is SegmentStatus.INTERRUPTED
    assert len(result.losses) == 5
    assert result.scores == {}
    rest = worker.run(segment(start=result.examples, checkpoint=result.checkpoint))
    assert (*result.losses, *rest.losses) == worker.run(segment()).losses


def test_stopping_during_the_evaluation_keeps_the_training(worker: Worker, segment: MakeSegment) -> None:
    answers = iter([False] * 30 + [True])
    result = worker.run(segment(), lambda: next(answers, True))
    assert (result.status, result.examples, result.scores) == (SegmentStatus.INTERRUPTED, 225, {})
    rest = worker.run(segment(start=225, checkpoint=result.checkpoint))
    assert rest.status is SegmentStatus.DONE
    assert rest.scores == worker.run(segment()).scores


def test_the_deadline_is_kept(
    tiny_bert: str,
    training: Training,
    segment: MakeSegment,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    training = training.model_copy(update={"epochs": 1000})
    data = prepare(reviews(400), model=tiny_bert, splits=Splits(train=90, validation=250, test=50), training=training)
    worker = Worker(WorkerSetup(model=tiny_bert, training=training, data=data))
    passed = 0.0

    def take(module: torch.nn.Module, *_: object) -> None:
        nonlocal passed
        passed += 0.01 * isinstance(module, BertForSequenceClassification)

    # A clock that other processes can't slow down: a forward pass takes 10 ms, everything else nothing.
    monkeypatch.setattr(time, "perf_counter", lambda: passed)
    hook = torch.nn.modules.module.register_module_forward_hook(take)
    request.addfinalizer(hook.remove)
    worker.run(segment(stop=8))  # loads the model, and times an evaluation
    started = time.perf_counter()
    result = worker.run(segment(deadline_seconds=1.5))
    seconds = time.perf_counter() - started
    assert result.status is SegmentStatus.INTERRUPTED
    assert result.losses
    assert not result.scores, "it is at no rung: a score would be compared with nothing, and take time"
    assert 0.75 < seconds <= 1.5 - 0.03, "the time of an evaluation was kept free"
    late = worker.run(segment(start=result.examples, checkpoint=result.checkpoint, deadline_seconds=0.0))
    assert (late.status, late.losses, late.scores) == (SegmentStatus.INTERRUPTED, (), {})
    assert late.checkpoint == result.checkpoint


def test_a_foreign_checkpoint_is_refused(worker: Worker, segment: MakeSegment) -> None:
    result = worker.run(segment(stop=8))
    for wrong in (
        segment(start=8, checkpoint=result.checkpoint, seed=8),
        segment(start=8, checkpoint=result.checkpoint, design=Design()),
        segment(start=16, checkpoint=result.checkpoint),
        segment(start=8, checkpoint=b"nonsense"),
        segment(start=8),
    ):
        refused = worker.run(wrong)
        assert refused.status is SegmentStatus.FAILED
        assert "Error" in refused.error
        assert "Traceback" in refused.error


def test_an_optimizer_state_that_does_not_fit_is_refused(worker: Worker, segment: MakeSegment) -> None:
    saved = worker.run(segment(stop=8)).checkpoint
    assert saved is not None
    checkpoint = Checkpoint.from_bytes(saved)
    name = next(name for name in checkpoint.optimizer if name.endswith("exp_avg"))
    for optimizer in (
        {key: tensor for key, tensor in checkpoint.optimizer.items() if key != name},
        {**checkpoint.optimizer, "other/0/step": torch.tensor(1.0)},
        {**checkpoint.optimizer, name: torch.zeros(1, 1)},
    ):
        result = worker.run(segment(start=8, checkpoint=replace(checkpoint, optimizer=optimizer).to_bytes()))
        assert result.status is SegmentStatus.FAILED
        assert ArtifactError.__name__ in result.error


def test_a_fully_trained_checkpoint_is_small(worker: Worker, segment: MakeSegment) -> None:
    part, whole = worker.run(segment(stop=216)), worker.run(segment())
    assert part.checkpoint is not None
    assert whole.checkpoint is not None
    assert len(whole.checkpoint) < 0.5 * len(part.checkpoint)
    assert Checkpoint.from_bytes(whole.checkpoint).optimizer == {}
    assert LORA.key == Checkpoint.from_bytes(whole.checkpoint).design


def test_pairs_of_texts_train(tiny_bert: str, training: Training, segment: MakeSegment) -> None:
    rows = pd.concat([reviews(120), reviews(120, seed=1)[["text"]].rename(columns={"text": "text_pair"})], axis=1)
    data = prepare(rows, model=tiny_bert, training=training)
    result = Worker(WorkerSetup(model=tiny_bert, training=training, data=data)).run(segment())
    assert result.status is SegmentStatus.DONE, result.error
