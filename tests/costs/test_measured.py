"""Seconds that are measured and predicted: there, of the right unit, and refused early. How long is not asserted."""

import json
import math
import time
from collections import Counter
from collections.abc import Sequence

import pytest
import torch

from autopeft.costs import measured
from autopeft.costs.estimate import estimate
from autopeft.costs.measured import Stopwatch
from autopeft.costs.model_costs import ModelCosts
from autopeft.costs.sample import sample_costs
from autopeft.costs.setting import Setting
from autopeft.costs.tables import sample_table
from autopeft.errors import DesignError
from autopeft.models.base import Base
from autopeft.spec.block import Quantization
from autopeft.spec.space import SearchSpace

LORA = {"blocks": [{"lora": {"rank": 2, "roles": ["query"]}}]}
TIMED = ("step_seconds", "predicted_step_seconds", "base_latency_seconds", "added_latency_seconds")


class CountedCosts(ModelCosts):
    """Costs that count how often the model is loaded, by storage."""

    n_loads: Counter[Quantization]

    def load(self, quantization: Quantization, setting: Setting) -> Base:
        self.n_loads[quantization] += 1
        return super().load(quantization, setting)


def test_a_design_is_timed_beside_its_prediction(llama_config: str):
    started = time.perf_counter()
    answer = estimate(llama_config, LORA, batch_size=2, sequence_length=16, measure=True)
    elapsed = time.perf_counter() - started
    values = json.loads(json.dumps(answer.to_dict()))
    assert all(isinstance(values[name], float) for name in TIMED)
    low, high = values["added_latency_range_seconds"]
    assert low <= values["added_latency_seconds"] <= high
    # At least half of the rounds took as long as their median, and all of them together less than the call.
    n_slow, n_tokens = math.ceil(values["n_rounds"] / 2), 2 * 16
    assert 0 < values["step_seconds"] * n_slow < elapsed
    assert 0 < values["base_latency_seconds"] * n_tokens * n_slow < elapsed
    lines = {line[:22].strip(): line for line in str(answer).splitlines()}
    assert "measured here, median" in lines["step time"]
    assert "predicted from its FLOP" in lines["step time"]
    assert "a token" in lines["added latency"]
    assert f"in {answer.n_rounds} rounds" in lines["added latency"]


def test_nothing_is_measured_unasked(llama_config: str):
    answer = estimate(llama_config, LORA, batch_size=2, sequence_length=16)
    assert {getattr(answer, name) for name in TIMED} == {None}
    assert "step time" not in str(answer)


def test_no_block_adds_nothing_and_where_nothing_trains_there_is_no_step(llama_config: str):
    answer = estimate(llama_config, {"blocks": []}, batch_size=1, sequence_length=4, task="causal-lm", measure=True)
    assert answer.added_latency_seconds == 0
    assert answer.base_latency_seconds is not None
    assert answer.base_latency_seconds > 0
    assert (answer.step_seconds, answer.predicted_step_seconds) == (None, None)


def test_the_designs_of_a_space_are_predicted_from_one_timing_a_storage(llama_config: str):
    setting = Setting(batch_size=1, sequence_length=8, task="causal-lm")
    costs = CountedCosts(llama_config, task="causal-lm")
    costs.n_loads = Counter()
    space = SearchSpace.from_dict({"quantization": ["none", "nf4"], "blocks": {"lora": {"rank": [1, 2, 4]}}}, name="s")
    sample = sample_costs(costs, space, setting, n_samples=8)
    assert sample.step_seconds == {}
    timed = Stopwatch(costs, setting).predicted(sample)
    assert costs.n_loads == {"none": 1, "nf4": 1}
    for storage in costs.n_loads:
        of_storage = [cost for design, cost in timed.costs if design.quantization == storage]
        speeds = [(cost.predicted_step_seconds or 0.0) / cost.step_flops for cost in of_storage]
        assert min(speeds) > 0
        assert max(speeds) == pytest.approx(min(speeds))
    assert list(timed.step_seconds.values()) == sorted(timed.step_seconds.values())
    assert timed.to_dict()["step_seconds"] == timed.step_seconds
    assert "training step, predicted" in rows_of(sample_table(timed))
    assert "training step, predicted" not in rows_of(sample_table(sample))


def rows_of(parts: Sequence[object]) -> str:
    from rich.console import Console

    console = Console(width=160)
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    return captured.get()


def test_weights_that_are_there_are_used(minilm: str):
    from safetensors import safe_open

    costs = ModelCosts(minilm, task="text-classification")
    assert costs.has_weights
    base = costs.load("none", Setting())
    name = "encoder.layer.0.attention.self.query.weight"
    with safe_open(f"{minilm}/model.safetensors", "pt") as file:
        assert torch.equal(base.model.get_parameter(f"bert.{name}"), file.get_tensor(name).float())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_here_is_refused_before_the_model_is_looked_for():
    with pytest.raises(DesignError, match=r"torch sees no CUDA device for device='cuda'; set device to cpu, or do not"):
        estimate("nobody/nothing", LORA, device="cuda", measure=True)


def test_what_does_not_fit_is_refused(llama_config: str, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(DesignError, match=r"must fit the device, but LoRA r=2 on query is predicted to need .* TiB"):
        estimate(llama_config, LORA, batch_size=2**26, sequence_length=16, measure=True)
    full = measured.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(measured, "disk_usage", lambda _: full)
    with pytest.raises(DesignError, match=r"random ones of .* but 1000 B are free; give a folder that has the weights"):
        estimate(llama_config, LORA, sequence_length=16, measure=True)
