"""`autopeft search` says where designs train."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from autopeft.cli import main
from autopeft.cli.search import _where
from autopeft.spec.study import load_study


@pytest.mark.parametrize(
    ("args", "executor", "n_workers"),
    [
        ((None, None, None), {"type": "ray", "address": None, "cpus_per_worker": 1}, 2),
        (("ray", None, None), {"type": "ray", "address": None, "cpus_per_worker": 1}, 2),
        ((None, "10.0.0.1:6379", None), {"type": "ray", "address": "10.0.0.1:6379", "cpus_per_worker": 1}, 2),
        (("ray", "auto", 5), {"type": "ray", "address": "auto", "workers": 5, "cpus_per_worker": 1}, 5),
        (("local", None, None), "local", 1),
    ],
)
def test_options_say_where_designs_train_and_keep_the_rest(
    tmp_path: Path, args: tuple[str | None, str | None, int | None], executor: Any, n_workers: int
) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("{model: m, data: d, n_workers: 2, executor: {type: ray, cpus_per_worker: 1}}")
    values = load_study(path, _where(*args)).to_dict()
    found = values["executor"]
    assert values["n_workers"] == n_workers
    assert found == executor if isinstance(executor, str) else executor.items() <= found.items()


def test_an_address_for_this_process_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["search", "study.yaml", "--executor", "local", "--address", "auto"])
    assert done.exit_code == 2
    assert "--address and --workers are for Ray" in done.output
