from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from autopeft.errors import DesignError
from autopeft.metrics import METRICS
from autopeft.models.attach import attach
from autopeft.models.base import load_base
from autopeft.spec.design import Design
from autopeft.spec.training import Training
from autopeft.spec.trial import Segment, SegmentStatus
from autopeft.tasks.base import PreparedData, find_task
from autopeft.training.checkpoint import Checkpoint
from autopeft.training.worker import Worker, WorkerSetup, make_worker, status_of
from tests.token_rows import token_rows
from tests.training.conftest import LORA

MakeSegment = Callable[..., Segment]


def test_predictions_are_those_of_the_model_one_by_one(
    worker: Worker, tiny_bert: str, data: PreparedData, segment: MakeSegment
) -> None:
    trained = worker.run(segment())
    tested = worker.run(segment(stage="test", checkpoint=trained.checkpoint))
    assert tested.status is SegmentStatus.DONE, tested.error
    assert trained.checkpoint is not None
    base = load_base(tiny_bert, find_task(data.task).head(data.labels))
    with attach(base, LORA) as attached, torch.no_grad():
        attached.load_state(Checkpoint.from_bytes(trained.checkpoint).adapter)
        for split, result in ((data.validation, trained), (data.test, tested)):
            assert "token_type_ids" in split.inputs
            alone = []
            for row in token_rows(split):
                ids = torch.from_numpy(row.astype(np.int64))[None]
                alone.append(int(attached.model(input_ids=ids).logits.argmax()))
            assert list(result.predictions) == alone
            for name, metric in METRICS.items():
                value, standard_error = metric.score(split.labels, np.array(alone))
                assert (result.scores[name], result.standard_errors[name]) == (value, standard_error)


def test_an_artifact_comes_with_full_training_alone(worker: Worker, segment: MakeSegment) -> None:
    assert worker.run(segment(stop=216)).artifact == {}
    whole = worker.run(segment())
    assert whole.artifact
    assert all(isinstance(content, bytes) for content in whole.artifact.values())


def test_what_was_measured(worker: Worker, segment: MakeSegment) -> None:
    first = worker.run(segment(stop=48))
    rest = worker.run(segment(start=first.examples, checkpoint=first.checkpoint))
    together = first.measured + rest.measured
    assert first.measured.peak_memory is not None
    assert first.measured.peak_memory > sum(p.numel() * 4 for p in worker._bases["none"].model.parameters())
    assert rest.measured.peak_memory is None, "one step of a trial is measured"
    assert together.n_steps == 30
    assert together.train_seconds > 0
    assert together.evaluation_seconds > 0
    assert together.n_tokens >= 225 * 3


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MemoryError(), SegmentStatus.OUT_OF_MEMORY),
        (torch.OutOfMemoryError("CUDA out of memory"), SegmentStatus.OUT_OF_MEMORY),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), SegmentStatus.OUT_OF_MEMORY),
        (RuntimeError("CUDA error: out of memory"), SegmentStatus.OUT_OF_MEMORY),
        (RuntimeError("shapes do not match"), SegmentStatus.FAILED),
        (ValueError("ran out of memory cards"), SegmentStatus.FAILED),
    ],
)
def test_out_of_memory_is_told_apart(error: Exception, status: SegmentStatus) -> None:
    assert status_of(error) is status


def test_a_real_allocation_failure_ends_the_segment_alone(
    tiny_bert: str, training: Training, data: PreparedData, segment: MakeSegment
) -> None:
    worker = Worker(WorkerSetup(model=tiny_bert, training=training, data=data))
    expected = worker.run(segment(stop=16)).losses

    def exhaust() -> bool:
        torch.empty(2**60, dtype=torch.uint8)
        return False

    result = worker.run(segment(), exhaust)
    assert result.status is SegmentStatus.OUT_OF_MEMORY
    assert "Traceback" in result.error
    assert worker.run(segment(stop=16)).losses == expected


def test_a_failure_is_data_and_an_interrupt_is_not(worker: Worker, segment: MakeSegment) -> None:
    illegal = Design.from_dict({"blocks": [{"lora": {"rank": 1, "layers": [7]}}]})
    result = worker.run(segment(design=illegal))
    assert result.status is SegmentStatus.FAILED
    assert DesignError.__name__ in result.error

    def interrupt() -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        worker.run(segment(), interrupt)
    assert worker.run(segment(stop=8)).status is SegmentStatus.DONE


def test_a_damaged_base_is_loaded_again(
    tiny_bert: str, training: Training, data: PreparedData, segment: MakeSegment
) -> None:
    worker = Worker(WorkerSetup(model=tiny_bert, training=training, data=data))
    expected = worker.run(segment(stop=16)).losses
    before = worker._bases["none"]

    def damage() -> bool:
        with torch.no_grad():
            before.model.base_model.embeddings.word_embeddings.weight.add_(0.1)
        return False

    worker.run(segment(stop=8), damage)
    assert worker.run(segment(stop=16)).losses == expected
    assert worker._bases["none"] is not before


def test_a_base_is_loaded_once(worker: Worker, segment: MakeSegment) -> None:
    worker.run(segment(stop=8))
    base = worker._bases["none"]
    worker.run(segment(stop=8, design=Design(), trial=1))
    assert worker._bases == {"none": base}


def test_a_quantized_base_trains_in_segments(worker: Worker, segment: MakeSegment) -> None:
    design = Design(blocks=LORA.blocks, quantization="nf4")
    whole = worker.run(segment(design=design, stop=64))
    first = worker.run(segment(design=design, stop=24))
    assert first.status is SegmentStatus.DONE, first.error
    rest = worker.run(segment(design=design, start=first.examples, stop=64, checkpoint=first.checkpoint))
    assert (*first.losses, *rest.losses) == whole.losses
    assert set(worker._bases) >= {"none", "nf4"}


def test_open_choices_are_refused(tiny_bert: str, data: PreparedData, segment: MakeSegment) -> None:
    result = make_worker(WorkerSetup(model=tiny_bert, training=Training(), data=data)).run(segment())
    assert result.status is SegmentStatus.FAILED
    assert "choose_training" in result.error


def test_the_setup_and_results_travel(worker: Worker, segment: MakeSegment) -> None:
    import cloudpickle

    setup: Any = cloudpickle.loads(cloudpickle.dumps(worker.setup))
    result = cloudpickle.loads(cloudpickle.dumps(make_worker(setup).run(segment(stop=8))))
    assert result.losses == worker.run(segment(stop=8)).losses
