from pathlib import Path

import pytest

from autopeft.errors import StudyError
from autopeft.spec.training import Training
from autopeft.tasks.base import PreparedData
from autopeft.training import device as device_module
from autopeft.training.device import PLAIN_MARGIN, choose_training, group_limits, memory_bytes


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
