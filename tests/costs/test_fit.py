"""What fits a memory, against trying every batch."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.costs.fit import MAX_BATCH_SIZE, fit, largest_batch_size
from autopeft.costs.model_costs import ModelCosts
from autopeft.costs.setting import Setting
from autopeft.spec.space import SearchSpace

POWERS = [2**power for power in range(MAX_BATCH_SIZE.bit_length())]


@given(
    base=st.integers(0, 10**6),
    example=st.integers(0, 10**5),
    bend=st.integers(0, 10**5),
    at=st.integers(1, 500),
    memory=st.integers(0, 10**8),
)
def test_the_largest_batch_is_the_one_that_trying_all_finds(base: int, example: int, bend: int, at: int, memory: int):
    def bytes_at(batch_size: int) -> int:
        return base + example * batch_size + bend * max(0, batch_size - at)

    expected = max((n for n in POWERS if bytes_at(n) <= memory), default=0)
    assert largest_batch_size(bytes_at, memory) == expected


def test_few_questions_are_asked():
    asked: list[int] = []

    def bytes_at(batch_size: int) -> int:
        asked.append(batch_size)
        return 1000 + 10 * batch_size

    assert largest_batch_size(bytes_at, 1000 + 10 * 300) == 256
    assert len(asked) <= 4


@pytest.mark.slow
def test_what_is_said_to_fit_does_and_its_double_does_not(llama_config: str):
    costs, setting = ModelCosts(llama_config, task="causal-lm"), Setting(sequence_length=16, task="causal-lm")
    space = SearchSpace.from_dict(
        {"quantization": ["none"], "blocks": {"ia3": {}, "prompt": {"length": [1, 2]}}}, name="small"
    )
    wide = SearchSpace.from_dict({"quantization": ["none"], "blocks": {"adapter": {"size": [96]}}}, name="wide")
    memory_bytes = 2**21
    found = fit(costs, memory_bytes, setting, spaces=[space, wide])
    assert {answer.design.quantization for answer in found.designs} == {"none", "int8", "nf4"}
    assert all(answer.design.kinds == ("lora",) for answer in found.designs), "there is no head to train alone"
    (of_space,) = found.spaces
    for answer in (*found.designs, of_space.smallest, of_space.typical):
        there, double = (
            costs.cost(answer.design, replace(setting, batch_size=n * answer.batch_size)).device_bytes for n in (1, 2)
        )
        assert there == answer.memory_bytes <= memory_bytes < double
    assert list(found.refused) == ["wide"]
    assert json.loads(json.dumps(found.to_dict()))["spaces"][0]["n_sampled"] == of_space.n_sampled
    none = fit(costs, 1000, setting, spaces=[space])
    assert {answer.batch_size for answer in none.designs} == {0}
    assert none.spaces[0].n_fitting == 0 < none.spaces[0].n_sampled


def test_on_a_gpu_what_the_allocator_holds_must_fit():
    from tests.costs.test_sample import made_up

    _, estimate = made_up(1, 100)
    assert estimate.device_bytes == 100
    assert replace(estimate, reserved_memory=160).device_bytes == 160
    assert replace(estimate, reserved_memory=90).device_bytes == 100


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_estimators_for_other_batches_answer_as_new_ones(llama_config: str, device: str):
    settings = [Setting(batch_size=n, sequence_length=16, device=device, task="causal-lm") for n in (1, 4)]
    from autopeft.spec.design import Design

    design = Design.from_dict({"quantization": "nf4", "blocks": [{"lora": {"rank": 2}}]})
    together = ModelCosts(llama_config, task="causal-lm")
    for setting in settings:
        assert together.cost(design, setting) == ModelCosts(llama_config, task="causal-lm").cost(design, setting)
