import pytest

from autopeft.errors import StudyError
from autopeft.spec.training import Training
from autopeft.tasks.base import PreparedData
from autopeft.training.device import PLAIN_MARGIN, choose_training


def test_everything_is_resolved_by_what_was_measured(tiny_bert: str, data: PreparedData) -> None:
    choice = choose_training(tiny_bert, Training(batch_size=8), data)
    assert set(choice.step_seconds) == {"fp32/sdpa", "fp32/eager", "bf16/sdpa", "bf16/eager"}
    chosen = f"{choice.training.precision}/{choice.training.kernel}"
    plain = choice.step_seconds["fp32/sdpa"]
    assert choice.step_seconds[chosen] == min(choice.step_seconds.values()) or chosen == "fp32/sdpa"
    assert (chosen == "fp32/sdpa") == (min(choice.step_seconds.values()) > PLAIN_MARGIN * plain)
    assert choice.training.device in ("cpu", "cuda")


def test_what_is_given_stays(tiny_bert: str, data: PreparedData) -> None:
    given = Training(precision="bf16", kernel="eager", device="cpu")
    choice = choose_training(tiny_bert, given, data)
    assert choice.training == given
    assert set(choice.step_seconds) == {"bf16/eager"}
    half = choose_training(tiny_bert, Training(kernel="eager", device="cpu"), data)
    assert half.training.kernel == "eager"
    assert set(half.step_seconds) == {"fp32/eager", "bf16/eager"}


@pytest.mark.parametrize("device", ["cuda:99", "tpu9"])
def test_a_device_that_is_not_there_is_refused(tiny_bert: str, data: PreparedData, device: str) -> None:
    with pytest.raises(StudyError, match=device):
        choose_training(tiny_bert, Training(device=device), data)
