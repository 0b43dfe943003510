"""The fast path counts what trains exactly, for every technique on every architecture."""

import pytest
from rows import ROWS
from tiny_models import ARCHITECTURES, HEADS, save, saved_as

from autopeft.costs.estimator import Estimator
from autopeft.costs.fast import FastEstimator
from autopeft.errors import DesignError
from autopeft.models.base import build_meta
from autopeft.spec.cost import Workload
from autopeft.spec.design import Design

WORKLOAD = Workload(batch_size=4, evaluation_batch_size=4, max_tokens=16, n_steps=1, n_examples=4, n_train_tokens=64)


@pytest.mark.parametrize(
    "architecture",
    ["bert", *(pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES if name != "bert")],
)
def test_parameters_of_every_technique_are_exact(architecture: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = save(architecture, tmp_path_factory.mktemp(architecture), saved_as(architecture))
    base = build_meta(folder, HEADS[architecture])
    estimator = Estimator(base, workload=WORKLOAD, precision="fp32", kernel="sdpa", device="cpu", n_threads=1)
    fast = FastEstimator(estimator)
    for row in ROWS:
        if architecture in row.refused_on or callable(row.settings):
            continue
        design = Design(blocks=(row.make(base),))
        try:
            design.check(base.summary)
        except DesignError:
            continue
        assert fast.trainable_params(design) == estimator.trainable_params(design), row.name
