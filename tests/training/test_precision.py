import time

import pytest
import torch

from autopeft.training import precision
from autopeft.training.precision import StepTimes, step_times


def test_a_small_layer_is_timed_in_both_precisions_once() -> None:
    before = torch.get_rng_state()
    times = step_times("cpu")
    assert times.fp32 > 0
    assert times.bf16 > 0
    assert torch.equal(before, torch.get_rng_state())
    assert step_times("cpu") is times


@pytest.mark.parametrize(
    ("ratio", "best", "said"),
    [
        (0.5, "bf16", "made for bf16: a step in bf16 takes 0.5 times as long as in fp32"),
        (1.0, "fp32", "made for fp32: a step in bf16 takes 1.0 times as long as in fp32"),  # a tie
        (28.4, "fp32", "made for fp32: a step in bf16 takes 28 times as long as in fp32"),
        (float("inf"), "fp32", "made for fp32: it has no kernels for bf16"),
    ],
)
def test_a_device_is_made_for_the_faster_one(ratio: float, best: str, said: str) -> None:
    times = StepTimes(fp32=2.0, bf16=2.0 * ratio)
    assert (times.best, times.describe()) == (best, said)


def test_a_precision_without_kernels_takes_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("could not create a primitive descriptor")

    taken = precision._in_turns({"fp32": lambda: time.sleep(0), "bf16": fail}, torch.device("cpu"))
    assert (taken["fp32"] < 1, taken["bf16"]) == (True, float("inf"))
