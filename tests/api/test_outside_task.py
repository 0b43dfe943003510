"""A task from another package: one file and one entry point, and everything that autopeft does with tasks."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.tasks.generated import reviews

ROOT = Path(__file__).parents[2]
SPACE: dict[str, Any] = {"blocks": {"lora": {"rank": [1, 2], "learning_rate": {"log": [1e-2, 1e-1]}}}}
PREDICT = """
import sys, autopeft
print(autopeft.predict(sys.argv[1], sys.argv[2], limit=3)["prediction"].tolist())
"""
REPORT = """
import json, sys, autopeft
result = autopeft.open(sys.argv[1])
best = result.best(within="1se")
gap = result.compare(best, 0, "rmse").validation
card = (result.state.folder / f"adapters/{best.number}/README.md").read_text()
tested = best.number in result.state.tests
print(json.dumps([result.state.spec.task, result.state.metric, tested, gap.paired, card]))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the example's package into a folder of its own, from a copy: a build leaves files behind."""
    folder = tmp_path_factory.mktemp("outside")
    source, target = folder / "source", folder / "site"
    source.mkdir()
    for file in (ROOT / "studies" / "rating").glob("*.*"):
        (source / file.name).write_bytes(file.read_bytes())
    install = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", *install, str(source)], check=True)
    return target


@pytest.fixture
def ratings(study: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Return a study of texts whose rating says how many of their words are good, in a csv file."""
    rows = reviews(300)
    good = rows["text"].str.count(r"good\d") - rows["text"].str.count(r"bad\d")
    rows["rating"] = np.clip(50 + 10 * good, 0, 100)
    file = tmp_path / "ratings.csv"
    rows[["text", "rating"]].to_csv(file, index=False)
    asked = {**study, "data": str(file), "task": "rating", "space": SPACE, "n_trials": 2, "early_stopping": "off"}
    return {key: value for key, value in asked.items() if key not in ("columns", "metric", "objectives", "budget")}


def run(*command: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a new Python process, which sees the package at `path` alone."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*([str(path)] if path else []), str(ROOT)])}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)


def check_search(ratings: dict[str, Any], installed: Path, folder: Path, **changes: Any) -> Path:
    """Search with the command line in a new process, and return the folder of the study."""
    file = folder / "study.yaml"
    file.write_text(json.dumps({**ratings, **changes}), encoding="utf-8")  # JSON is YAML
    searched = run("-m", "autopeft", "search", str(file), path=installed)
    assert searched.returncode == 0, searched.stderr
    return Path(ratings["output_dir"]) / ratings["study_name"]


@pytest.mark.slow
def test_it_is_searched_exported_loaded_and_predicted_with(
    ratings: dict[str, Any], installed: Path, tmp_path: Path
) -> None:
    runs = check_search(ratings, installed, tmp_path)
    found = run("-c", REPORT, str(runs), path=installed)
    assert found.returncode == 0, found.stderr
    *said, card = json.loads(found.stdout)
    assert said == ["rating", "spearman", True, True]
    assert "Spearman correlation" in card
    assert "pipeline_tag: text-classification" in card

    target = tmp_path / "exported"
    exported = run("-m", "autopeft", "export", str(runs), str(target), path=installed)
    assert exported.returncode == 0, exported.stderr
    output = tmp_path / "answers.csv"
    command = ("-m", "autopeft", "predict", str(target), "--data", ratings["data"], "--output", str(output))
    answered = run(*command, path=installed)
    assert answered.returncode == 0, answered.stderr
    answers = pd.read_csv(output)
    assert np.corrcoef(answers["prediction"], answers["rating"])[0, 1] > 0.5
    assert answers["prediction"].tolist()[:3] == pytest.approx(
        json.loads(run("-c", PREDICT, str(target), ratings["data"], path=installed).stdout), abs=1e-3
    )
    without = run("-c", PREDICT, str(target), ratings["data"])
    assert "needs the task 'rating', which autopeft does not know here; run pip install autopeft-rating==0.1.0" in (
        without.stderr
    )


@pytest.mark.thorough
def test_its_mistakes_are_told_as_those_of_every_task(ratings: dict[str, Any], installed: Path, tmp_path: Path) -> None:
    rows = pd.read_csv(ratings["data"], dtype=str)
    rows.loc[::2, "rating"] = "a lot"
    rows.to_csv(ratings["data"], index=False)
    file = tmp_path / "study.yaml"
    file.write_text(json.dumps(ratings), encoding="utf-8")
    wrong = run("-m", "autopeft", "search", str(file), path=installed)
    assert wrong.returncode == 2
    assert "columns.rating must hold numbers from 0 to 100, but row " in wrong.stderr
    unknown = run("-m", "autopeft", "search", str(file))
    assert "one of causal-lm, text-classification, but got 'rating'" in " ".join(unknown.stderr.split())
    estimated = run("-m", "autopeft", "estimate", ratings["model"], "--task", "rating", "--design",
                    '{"blocks": [{"lora": {"rank": 2}}]}', "--json", path=installed)  # fmt: skip
    assert json.loads(estimated.stdout)["trainable_params"] > 0, estimated.stderr


@pytest.mark.ray
def test_workers_on_ray_know_an_installed_package(ratings: dict[str, Any], installed: Path, tmp_path: Path) -> None:
    runs = check_search(ratings, installed, tmp_path, executor={"type": "ray", "cpus_per_worker": 1})
    assert (runs / "front.json").is_file()
