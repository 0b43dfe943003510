"""The dry run repeats the training loop's steps: this fails where the loop comes to keep something else."""

from collections.abc import Callable

import numpy as np
import pytest

from autopeft.estimation.estimator import Estimator
from autopeft.spec.design import Design
from autopeft.spec.trial import Segment
from autopeft.tasks.base import PreparedData, TokenizedSplit
from autopeft.training.worker import Worker, WorkerSetup
from tests.estimation.conftest import BATCH_SIZE, N_TOKENS
from tests.estimation.measured import HEAD, one_epoch, one_split

DESIGNS = {
    "hybrid": {"blocks": [{"lora": {"rank": 8}}, {"adapter": {"size": 16}}]},
    # a penalty in the loss, and tensors that it remembers from step to step
    "adalora": {"blocks": [{"adalora": {"rank": 8}}]},
    "adalora, nf4": {"blocks": [{"adalora": {"rank": 8}}], "quantization": "nf4"},
}


def padded_data() -> PreparedData:
    """Return two batches of examples, with padding in each: without any, the model leaves its mask out."""
    lengths = np.full(2 * BATCH_SIZE, N_TOKENS // 2)
    lengths[: BATCH_SIZE - 1] = N_TOKENS  # batches are sorted by length: one short example joins the long ones
    ids = np.full(lengths.sum(), 1000, dtype=np.int32)
    split = TokenizedSplit(
        input_ids=ids,
        token_type_ids=np.zeros_like(ids),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        labels=np.arange(len(lengths), dtype=np.int64) % 2,
    )
    return one_split(split, task="text-classification", metric="accuracy", labels=HEAD.labels, n_tokens=N_TOKENS)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", DESIGNS)
def test_the_peak_is_the_one_that_a_worker_measures(
    name: str, precision: str, minilm: str, estimator: Callable[..., Estimator]
):
    worker = Worker(WorkerSetup(model=minilm, training=one_epoch(precision, BATCH_SIZE), data=padded_data()))
    design = Design.from_dict(DESIGNS[name])
    result = worker.run(
        Segment(trial=0, design=design, learning_rates={}, seed=0, stop=2 * BATCH_SIZE, full=2 * BATCH_SIZE)
    )
    assert not result.error
    step, _ = estimator(precision).steps(design)
    assert step.peak_bytes == pytest.approx(result.measured.peak_memory, rel=0.01)
