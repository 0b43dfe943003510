"""Costs of prompts and prefixes that compute themselves, against real steps: an LSTM has kernels of its own."""

from collections.abc import Callable
from typing import Any

import pytest

from autopeft.costs.estimator import Estimator
from autopeft.models.attach import attach
from autopeft.models.base import Base
from autopeft.spec.design import Design
from tests.costs.conftest import BATCH_SIZE, N_TOKENS
from tests.costs.real_run import RealRun, counted

DESIGNS: dict[str, tuple[dict[str, Any], float]] = {
    "prompt from an MLP": ({"prompt": {"length": 16, "encoder": "mlp"}}, 1e-4),
    "prompt from an LSTM": ({"prompt": {"length": 16, "encoder": "lstm"}}, 1e-3),
    "prefix from an MLP": ({"prefix": {"length": 16, "projection": True}}, 1e-3),
    "gated prefix": ({"prefix": {"length": 16, "gate": True, "layers": [3, 4, 5]}}, 1e-3),
}


FAST = ("prompt from an LSTM", "gated prefix")  # an LSTM is followed by an MLP


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in DESIGNS]
)
def test_costs_are_those_of_a_real_step(
    name: str, loaded: Callable[..., Base], estimator: Callable[..., Estimator]
) -> None:
    block, tolerance = DESIGNS[name]
    made = Design.from_dict({"blocks": [block]})
    estimating = estimator()
    (training, evaluation), answer = estimating.steps(made), estimating(made)
    with attach(loaded(), made) as attached:
        run = RealRun(attached, "fp32", batch_size=BATCH_SIZE, n_tokens=N_TOKENS)
        assert training.peak_bytes == pytest.approx(run.training_peak(), rel=tolerance)
        assert evaluation.peak_bytes == pytest.approx(run.evaluation_peak(), rel=tolerance)
        attached.model.train()
        assert training.flops == counted(run.train)
        assert answer.trainable_params == attached.n_trainable
        assert answer.adapter_bytes == sum(tensor.nbytes for tensor in attached.exported_tensors().values())


def test_what_is_folded_away_is_not_in_the_adapter(estimator: Callable[..., Estimator]) -> None:
    blocks: dict[str, dict[str, Any]] = {"prompt": {"encoder": "lstm"}, "prefix": {"projection": True}}
    for kind, settings in blocks.items():
        plain = estimator()(Design.from_dict({"blocks": [{kind: {"length": 16}}]}))
        computed = estimator()(Design.from_dict({"blocks": [{kind: {"length": 16, **settings}}]}))
        assert computed.trainable_params > plain.trainable_params
        assert computed.adapter_bytes == plain.adapter_bytes
