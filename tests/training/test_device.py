from pathlib import Path

import pytest

from autopeft.errors import StudyError
from autopeft.spec.training import Training
from autopeft.tasks.base import PreparedData
from autopeft.training import device as device_module
from autopeft.training.device import choose_training, group_limits, memory_bytes
from autopeft.training.precision import PLAIN_MARGIN, StepTimes

CANDIDATES = ("fp32/sdpa", "fp32/eager", "bf16/sdpa", "bf16/eager")


def timed(monkeypatch: pytest.MonkeyPatch, *, bf16_ratio: float, seconds: dict[str, float | None]) -> list[str]:
    """Replace what is measured, with None for a missing kernel, and return the steps that are made."""
    ran: list[str] = []

    def step(_attached: object, _data: object, training: Training, batches: list[object]) -> float:
        name = f"{training.precision}/{training.kernel}"
        ran.append(name)
        if seconds[name] is None:
            raise RuntimeError("could not create a primitive descriptor\nfor it")
        return seconds[name] * len(batches)

    monkeypatch.setattr(device_module, "step_times", lambda _: StepTimes(fp32=1.0, bf16=bf16_ratio))
    monkeypatch.setattr(device_module, "_round", step)
    return ran


def test_everything_is_resolved_by_what_was_measured(tiny_bert: str, data: PreparedData) -> None:
    choice = choose_training(tiny_bert, Training(batch_size=8), data)
    assert "fp32/sdpa" in choice.step_seconds
    assert set(choice.step_seconds) <= set(CANDIDATES)
    chosen = f"{choice.training.precision}/{choice.training.kernel}"
    plain = choice.step_seconds["fp32/sdpa"]
    assert choice.step_seconds[chosen] == min(choice.step_seconds.values()) or chosen == "fp32/sdpa"
    assert (chosen == "fp32/sdpa") == (min(choice.step_seconds.values()) > PLAIN_MARGIN * plain)
    assert choice.training.device in ("cpu", "cuda")
    assert choice.notes == ()


@pytest.mark.parametrize(
    ("times", "chosen"),
    [
        ((0.29, 0.25, 0.24, 0.14), "bf16/eager"),
        ((0.29, 0.31, 0.24, 0.25), "bf16/sdpa"),
        ((0.29, 0.28, 0.28, 0.28), "fp32/sdpa"),  # a tie
        ((0.29, 0.2, 0.28, 0.5), "fp32/eager"),
    ],
)
def test_the_fastest_is_chosen(
    times: tuple[float, ...], chosen: str, tiny_bert: str, data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, bf16_ratio=0.6, seconds=dict(zip(CANDIDATES, times, strict=True)))
    choice = choose_training(tiny_bert, Training(batch_size=8), data)
    assert f"{choice.training.precision}/{choice.training.kernel}" == chosen
    assert choice.step_seconds == dict(zip(CANDIDATES, times, strict=True))


def test_a_precision_in_which_a_small_layer_is_hopeless_takes_no_step(
    tiny_bert: str, data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = timed(monkeypatch, bf16_ratio=9.0, seconds={"fp32/sdpa": 0.3, "fp32/eager": 0.3})
    choice = choose_training(tiny_bert, Training(batch_size=8), data)
    assert (choice.training.precision, choice.notes) == ("fp32", ())
    assert set(ran) == {"fp32/sdpa", "fp32/eager"}


def test_a_candidate_is_given_up_after_one_step_of_several_times_the_best(
    tiny_bert: str, data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {"fp32/sdpa": 0.3, "fp32/eager": 0.3, "bf16/sdpa": 9.0, "bf16/eager": None}
    ran = timed(monkeypatch, bf16_ratio=2.0, seconds=seconds)
    choice = choose_training(tiny_bert, Training(batch_size=8), data)
    assert [ran.count("bf16/sdpa"), ran.count("bf16/eager")] == [1, 1]
    assert ran[0] == "fp32/sdpa"
    assert choice.step_seconds == {"fp32/sdpa": 0.3, "fp32/eager": 0.3}


def test_a_first_step_that_also_makes_what_later_ones_use_costs_the_plain_candidate_nothing(
    tiny_bert: str, data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = {"fp32/sdpa": iter([9.0] + 99 * [0.2]), "fp32/eager": iter(99 * [0.3])}
    step = lambda _a, _d, training, batches: next(taken[f"fp32/{training.kernel}"]) * len(batches)  # noqa: E731
    monkeypatch.setattr(device_module, "_round", step)
    choice = choose_training(tiny_bert, Training(batch_size=8, precision="fp32"), data)
    assert choice.training.kernel == "sdpa"


def test_what_is_given_stays(tiny_bert: str, data: PreparedData, monkeypatch: pytest.MonkeyPatch) -> None:
    given = Training(precision="bf16", kernel="eager", device="cpu")
    choice = choose_training(tiny_bert, given, data)
    assert choice.training == given
    assert set(choice.step_seconds) == {"bf16/eager"}
    timed(monkeypatch, bf16_ratio=0.6, seconds={"fp32/eager": 0.3, "bf16/eager": 0.2})
    half = choose_training(tiny_bert, Training(kernel="eager", device="cpu"), data)
    assert half.training.kernel == "eager"
    assert set(half.step_seconds) == {"fp32/eager", "bf16/eager"}


def test_what_is_given_and_hopeless_is_said(
    tiny_bert: str, data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, bf16_ratio=31.0, seconds={"bf16/sdpa": 0.2})
    choice = choose_training(tiny_bert, Training(precision="bf16"), data)
    assert (choice.training.precision, choice.training.kernel) == ("bf16", "sdpa")
    (note,) = choice.notes
    assert note == (
        "training.precision is bf16, but this processor is made for fp32: a step in bf16 takes 31 times as long as in "
        "fp32; leave out training.precision"
    )


def test_what_is_given_and_cannot_be_computed_is_refused(
    tiny_bert: str, data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, bf16_ratio=2.0, seconds={"bf16/eager": None})
    with pytest.raises(
        StudyError, match=r"possible in training\.precision bf16 .* primitive descriptor; leave both out$"
    ):
        choose_training(tiny_bert, Training(precision="bf16", kernel="eager"), data)


@pytest.mark.parametrize("device", ["cuda:99", "tpu9"])
def test_a_device_that_is_not_there_is_refused(tiny_bert: str, data: PreparedData, device: str) -> None:
    with pytest.raises(StudyError, match=device):
        choose_training(tiny_bert, Training(device=device), data)


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/slurm/job_7/step_0/task_1\n", {"slurm/job_7": "8000", "slurm/job_7/step_0": "max"}, [8000]),
        ("0::/slurm/job_7/step_0\n", {"slurm/job_7/step_0": "5000", "slurm": "9000", "": "7000"}, [5000, 9000, 7000]),
        ("4:cpu,memory:/slurm/job_7/step_0\n0::/other\n", {"memory/slurm/job_7": "6000", "other": "max"}, [6000]),
        ("0::/\n", {"": "4000"}, [4000]),
        ("0::/not/mounted/here\n", {"": "4000"}, [4000]),
        ("4:memory:/docker/ab\n", {"memory": "3000"}, [3000]),
        ("0::/../../outside\n", {"": "max"}, []),
        (None, {"": "4000"}, [4000]),
    ],
)
def test_a_limit_on_any_group_that_the_process_is_in_counts(
    tmp_path: Path, groups: str | None, limits: dict[str, str], expected: list[int]
) -> None:
    """Slurm's `--mem` is set some groups below the root, and a container's at the root that it sees."""
    mounted, file = tmp_path / "mounted", tmp_path / "cgroup"
    for group, limit in limits.items():
        name = "memory.limit_in_bytes" if group.startswith("memory") else "memory.max"
        (mounted / group).mkdir(parents=True, exist_ok=True)
        (mounted / group / name).write_text(limit + "\n")
    if groups is not None:
        file.write_text(groups)
    assert group_limits(file, mounted) == expected


def test_the_memory_of_this_machine_is_no_more_than_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "group_limits", lambda: [2**20, 2**30])
    assert memory_bytes("cpu") == 2**20
