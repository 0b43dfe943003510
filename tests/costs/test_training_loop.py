"""The dry run repeats the training loop's steps: this fails where the loop comes to keep something else."""

from collections.abc import Callable

import pytest

from autopeft.costs.estimator import Estimator
from autopeft.spec.design import Design
from autopeft.spec.trial import Segment
from autopeft.training.worker import Worker, WorkerSetup
from tests.costs.conftest import BATCH_SIZE, N_TOKENS
from tests.costs.real_run import one_epoch, padded_data
from tests.hardware import step_shape

DESIGNS = {
    "hybrid": {"blocks": [{"lora": {"rank": 8}}, {"adapter": {"size": 16}}]},
    # a penalty in the loss, and tensors that it remembers from step to step
    "adalora": {"blocks": [{"adalora": {"rank": 8}}]},
    "adalora, nf4": {"blocks": [{"adalora": {"rank": 8}}], "quantization": "nf4"},
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", DESIGNS)
def test_the_peak_is_the_one_that_a_worker_measures(
    name: str, precision: str, minilm: str, estimator: Callable[..., Estimator]
):
    batch_size, n_tokens = step_shape(precision, BATCH_SIZE, N_TOKENS)
    worker = Worker(
        WorkerSetup(
            model=minilm,
            training=one_epoch(precision, batch_size),
            data=padded_data("text-classification", batch_size=batch_size, n_tokens=n_tokens),
        )
    )
    design = Design.from_dict(DESIGNS[name])
    result = worker.run(
        Segment(trial=0, design=design, learning_rates={}, seed=0, stop=2 * batch_size, full=2 * batch_size)
    )
    assert not result.error
    step, _ = estimator(precision).steps(design)
    assert step.peak_bytes == pytest.approx(result.measured.peak_memory, rel=0.01)
