"""Who decides by which estimate: dry runs for the record and near a limit, the fast path elsewhere."""

from dataclasses import replace

import pytest

from autopeft.costs import costing as module
from autopeft.costs.costing import MARGIN, N_WASTED, Costing
from autopeft.costs.estimator import Estimator
from autopeft.costs.fast import DRY_RUN, VERSION, Costs, FastEstimator
from autopeft.errors import DesignError
from autopeft.spec.cost import Estimate
from autopeft.spec.design import Design
from tests.costs.test_fast import lora, make_estimator, minilm_estimator

__all__ = ["minilm_estimator"]

SMALL, LARGE = lora(layers=[5]), lora(rank=32)


@pytest.fixture
def full(minilm_estimator: Estimator, monkeypatch: pytest.MonkeyPatch) -> Estimator:
    monkeypatch.setattr(module, "N_WORTH_LEARNING", 1)
    return minilm_estimator


def test_a_search_learns_only_once_dry_runs_were_wasted(full: Estimator) -> None:
    limit = full(LARGE).peak_memory // 2
    costing = Costing(full, limits={"peak_memory": limit})
    costing.learn([LARGE])
    for _ in range(N_WASTED):
        assert costing.lower_bound(LARGE).keys() == {"trainable_params"}
        assert costing(LARGE).peak_memory > limit
    least, record = costing.lower_bound(LARGE), full(LARGE)
    assert least["trainable_params"] == record.trainable_params
    assert least["adapter_bytes"] == record.adapter_bytes
    for name in ("peak_memory", "train_flops", "inference_flops"):
        assert 0.9 * record.cost(name) < least[name] <= record.cost(name)


def test_without_a_limit_that_needs_it_nothing_is_learned(full: Estimator) -> None:
    costing = Costing(full, limits={"trainable_params": 10})
    for _ in range(N_WASTED + 1):
        costing(LARGE)
    assert dict(costing.lower_bound(LARGE)) == {"trainable_params": full.trainable_params(LARGE)}
    assert not costing.fast.knows(LARGE)


def test_near_a_limit_a_dry_run_decides(full: Estimator) -> None:
    record = full(SMALL)

    def decided(**limits: int) -> Estimate:
        costing = Costing(full, limits=limits)
        costing.learn([SMALL])
        return costing.decide(SMALL)

    assert decided().version == VERSION
    for share in (0.5, 2.0):
        assert decided(peak_memory=round(share * record.peak_memory)).version == VERSION
    for share in (1 - MARGIN / 2, 1.0, 1 + MARGIN / 2):
        assert decided(peak_memory=round(share * record.peak_memory)) == record
    assert decided(trainable_params=record.trainable_params).version == VERSION, "parameters are exact"
    over = decided(peak_memory=record.peak_memory, trainable_params=record.trainable_params - 1)
    assert over.version == VERSION, "it is over the other limit for sure"


@pytest.mark.parametrize("factor", [1 - 2 * MARGIN, 1 + MARGIN / 2, 1 + 2 * MARGIN])
def test_a_fast_path_that_is_wrong_on_a_model_decides_nothing_there(
    full: Estimator, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = FastEstimator.__call__

    def off(fast: FastEstimator, design: Design) -> Costs:
        told = right(fast, design)
        return told if told.source == DRY_RUN else replace(told, peak_memory=round(factor * told.peak_memory))

    monkeypatch.setattr(FastEstimator, "__call__", off)
    costing = Costing(full)
    costing.learn([SMALL, LARGE])
    if abs(factor - 1) > MARGIN:
        assert f"{factor - 1:+.0%} off a dry run on this model" in costing.obstacle
        assert costing.quick(SMALL) == full(SMALL)
    else:
        assert costing.obstacle == ""
        assert costing.quick(SMALL).version == VERSION


def test_few_designs_take_dry_runs(minilm_estimator: Estimator) -> None:
    costing = Costing(minilm_estimator)
    costing.learn([SMALL, LARGE])
    assert costing.quick(SMALL) == minilm_estimator(SMALL)


def test_inputs_that_are_too_long_are_refused_as_by_the_dry_run(full: Estimator) -> None:
    design = Design.from_dict({"blocks": [{"prompt": {"length": 500}}]})
    for ask in (Costing(full).lower_bound, Costing(full).quick, Costing(full)):
        with pytest.raises(DesignError, match="n_positions must hold"):
            ask(design)


def test_what_the_fast_path_cannot_do_is_named(minilm: str, minilm_estimator: Estimator) -> None:
    assert Costing(minilm_estimator).obstacle == ""
    estimator = make_estimator(minilm_estimator.base("none"), checkpointing=True)
    costing = Costing(estimator)
    costing.learn([SMALL] * 30)
    assert "backward pass" in costing.obstacle
    assert costing.decide(SMALL) == estimator(SMALL)
