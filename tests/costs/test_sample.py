"""Random designs of a space: drawn as the space draws them, counted as they are."""

import random
from collections import Counter

import pytest

from autopeft.costs.fast import VERSION as FAST
from autopeft.costs.model_costs import ModelCosts
from autopeft.costs.sample import NOTHING_TRAINS, CostSample, sample_costs
from autopeft.costs.setting import Setting
from autopeft.errors import DesignError
from autopeft.spec.cost import Estimate
from autopeft.spec.design import Design
from autopeft.spec.space import RandomChooser, SearchSpace

SETTING = Setting(sequence_length=16, batch_size=2, task="causal-lm")
SPACE = SearchSpace.from_dict(
    {
        "quantization": ["none"],
        "blocks": {
            "lora": {"use": [True, False], "rank": [1, 2, 4], "roles": [["query"]]},
            "prompt": {"use": [True, False], "length": [4, 60]},
        },
    },
    name="small",
)


@pytest.fixture(scope="module")
def costs(llama_config: str) -> ModelCosts:
    return ModelCosts(llama_config, task="causal-lm")


def test_every_draw_is_counted_once(costs: ModelCosts):
    seen: list[tuple[str, int, int]] = []
    sample = sample_costs(costs, SPACE, SETTING, n_samples=40, seed=3, progress=lambda *done: seen.append(done))
    chooser = RandomChooser(random.Random(3))
    drawn = [SPACE.draw(chooser, costs.summary).design for _ in range(40)]
    kinds = Counter(
        NOTHING_TRAINS
        if not design.blocks
        else "prompt.length + longest input <= n_positions must hold"
        if any(getattr(block, "length", 0) == 60 for block in design.blocks)
        else "legal"
        for design in drawn
    )
    assert min(kinds[name] for name in ("legal", NOTHING_TRAINS)) > 0, "the test is of both"
    assert len(sample.costs) == kinds.pop("legal")
    assert sample.n_illegal == kinds
    assert sample.n_drawn == 40
    estimated = [(index, n) for what, index, n in seen if what == "estimating designs of small"]
    assert estimated == [(index, 40) for index in range(40)]


def test_the_same_seed_draws_the_same_designs(costs: ModelCosts):
    first, again, other = (sample_costs(costs, SPACE, SETTING, n_samples=12, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_many_designs_are_summed_up_and_those_that_are_shown_are_dry_runs(costs: ModelCosts):
    full = costs.at(SETTING)
    limits = {
        "peak_memory": full(Design.from_dict({"blocks": [{"lora": {"rank": 4, "roles": ["query"]}}]})).peak_memory
    }
    few = sample_costs(costs, SPACE, SETTING, n_samples=9, seed=3)
    assert few.n_estimated_by == {full.version: len(few.costs)}, "it takes longer to learn what so few are made of"
    many = sample_costs(costs, SPACE, SETTING, n_samples=60, seed=3)
    n_shown = sum(design in {shown for shown, _ in many.extremes()} for design, _ in many.costs)
    assert many.n_estimated_by == {FAST: len(many.costs) - n_shown, full.version: n_shown}
    assert all(estimate == full(design) for design, estimate in many.extremes())
    for design, estimate in many.costs:
        assert estimate.trainable_params == full(design).trainable_params
        assert estimate.peak_memory == pytest.approx(full(design).peak_memory, rel=0.03)
    near = sample_costs(costs, SPACE, SETTING, n_samples=60, seed=3, limits=limits)
    exact = [full(design).peak_memory <= limits["peak_memory"] for design, _ in near.costs]
    assert near.feasible_share == sum(exact) / len(exact), "near the limit dry runs decide"


def test_what_is_slow_is_said_with_the_reason(llama_config: str):
    slow = Setting(sequence_length=16, batch_size=2, task="causal-lm", checkpointing=True)
    sample = sample_costs(ModelCosts(llama_config, task="causal-lm"), SPACE, slow, n_samples=2)
    assert any("dry run" in note and "again in the backward pass" in note for note in sample.notes)


def test_fewer_than_one_draw_is_refused(costs: ModelCosts):
    with pytest.raises(DesignError, match="samples >= 1 must hold, but got samples=0"):
        sample_costs(costs, SPACE, SETTING, n_samples=0)
    with pytest.raises(DesignError, match="sequence_length <= n_positions"):
        sample_costs(costs, SPACE, Setting(sequence_length=65, task="causal-lm"), n_samples=1)


def made_up(params: int, memory: int) -> tuple[Design, Estimate]:
    estimate = Estimate(
        trainable_params=params,
        head_params=0,
        adapter_bytes=4 * params,
        base_bytes=0,
        peak_memory=memory,
        train_flops=1,
        inference_flops=1,
        serving="peft",
        version="x",
    )
    return Design.from_dict({"blocks": [{"lora": {"rank": params}}]}), estimate


def test_a_budget_leaves_what_is_within_each_limit():
    pairs = (made_up(1, 500), made_up(2, 100), made_up(3, 400), made_up(4, 100))
    sample = CostSample(
        space="made", setting=SETTING, costs=pairs, n_illegal={}, limits={"trainable_params": 3, "peak_memory": 400}
    )
    assert sample.feasible_share == 0.5
    assert sample.n_over == {"trainable_params": 1, "peak_memory": 1}
    assert [estimate.trainable_params for _, estimate in sample.extremes()] == [1, 4]
    assert sample.quantiles["peak_memory"]["median"] == 250
    assert sample.quantiles["trainable_params"]["smallest"] == 1
    empty = CostSample(space="made", setting=SETTING, costs=(), n_illegal={"a rule": 2}, limits={})
    assert (empty.quantiles, empty.extremes(), empty.feasible_share, empty.n_drawn) == ({}, (), 0.0, 2)
