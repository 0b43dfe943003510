"""Random designs of a space: drawn as the space draws them, counted as they are."""

import random
from collections import Counter

import pytest

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
    seen: list[tuple[int, int]] = []
    sample = sample_costs(costs, SPACE, SETTING, n_samples=40, seed=3, progress=lambda _, i, n: seen.append((i, n)))
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
    assert seen == [(index, 40) for index in range(40)]


def test_the_same_seed_draws_the_same_designs(costs: ModelCosts):
    first, again, other = (sample_costs(costs, SPACE, SETTING, n_samples=12, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


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
