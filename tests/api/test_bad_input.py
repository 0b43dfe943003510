"""Typical mistakes: each is named, with its value and the way out, before anything is trained."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import autopeft
from autopeft.errors import AutopeftError
from autopeft.executors.local import LocalExecutor
from tests.tasks.generated import reviews

Change = Callable[[dict[str, Any], Path], dict[str, Any]]


def csv(path: Path, frame: pd.DataFrame) -> dict[str, Any]:
    frame.to_csv(path / "bad.csv", index=False)
    return {"data": str(path / "bad.csv")}


def new_label_in_validation(study: dict[str, Any], path: Path) -> dict[str, Any]:
    import datasets

    frame = reviews(200)
    held_out = frame[100:].assign(label="excellent")
    parts = {"train": frame[:100], "validation": held_out[:50], "test": frame[150:]}
    data = {name: datasets.Dataset.from_pandas(part, preserve_index=False) for name, part in parts.items()}
    return {"data": datasets.DatasetDict(data), "splits": {}, "columns": {}}


def empty_text(study: dict[str, Any], path: Path) -> dict[str, Any]:
    frame = reviews(300)
    frame.loc[7, "text"] = "  "
    return csv(path, frame)


def without_weights(study: dict[str, Any], path: Path) -> dict[str, Any]:
    shutil.copytree(study["model"], path / "hollow")
    (path / "hollow" / "model.safetensors").unlink()
    return {"model": str(path / "hollow")}


def with_remote_code(study: dict[str, Any], path: Path) -> dict[str, Any]:
    shutil.copytree(study["model"], path / "remote")
    config = json.loads((path / "remote" / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoModel": "modeling_mine.Mine", "AutoConfig": "mine.Config"}}
    (path / "remote" / "config.json").write_text(json.dumps(config))
    return {"model": str(path / "remote")}


def space(**lora: Any) -> Change:
    return lambda study, path: {"space": {"blocks": {"lora": {"rank": [2], **lora}}}}


MISTAKES: dict[str, tuple[Change, str]] = {
    "missing file": (lambda s, p: {"data": str(p / "none.csv")}, r"none\.csv"),
    "unknown extension": (lambda s, p: {"data": str((p / "x.txt").write_text("a") and p / "x.txt")}, r"x\.txt"),
    "unknown column": (lambda s, p: {"columns": {"text": "reveiw"}}, "reveiw.*text"),
    "one class": (lambda s, p: csv(p, reviews(300).assign(label="good")), "good"),
    "label that train lacks": (new_label_in_validation, "excellent"),
    "empty text": (empty_text, "row 8"),
    "role that the model lacks": (space(roles=[["mlp_gate"]]), "blocks.lora.roles.*query.*mlp_gate"),
    "rank above hidden size": (space(rank=[9000]), "rank=9000, hidden_size=32"),
    "budget that nothing meets": (
        lambda s, p: {"budget": {"trainable_params": 70}},
        "smallest one, .*raise budget.trainable_params",
    ),
    "memory that nothing meets": (lambda s, p: {"budget": {"peak_memory": "1kB"}}, "smallest one.*peak_memory"),
    "model without weights": (without_weights, "weights"),
    "model with remote code": (with_remote_code, "trust_remote_code"),
    "model that is not there": (lambda s, p: {"model": str(p / "nothing")}, "nothing"),
    "unknown key": (lambda s, p: {"n_trails": 3}, "n_trails is not a known key; did you mean 'n_trials'"),
    "unknown task": (lambda s, p: {"task": "text-clasification"}, "did you mean 'text-classification'"),
    "metric not among the objectives": (
        lambda s, p: {"metric": "macro_f1", "objectives": ["accuracy", "trainable_params"]},
        "must be among the objectives",
    ),
    "yardstick that the model does not allow": (
        lambda s, p: {"yardstick": {"blocks": [{"lora": {"rank": 8, "roles": ["mlp_gate"]}}]}},
        "mlp_gate",
    ),
    "device that is not there": (
        lambda s, p: {"training": {**s["training"], "device": "cuda:7"}},
        "no CUDA device for 'cuda:7'",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_before_anything_is_trained(
    name: str, study: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, message = MISTAKES[name]
    monkeypatch.setattr(LocalExecutor, "submit", lambda *_: pytest.fail("a trial was started"))
    with pytest.raises(AutopeftError, match=f"(?s){message}"):
        autopeft.search(**{**study, **change(study, tmp_path)})


def test_the_folder_of_another_study_is_refused(study: dict[str, Any]) -> None:
    autopeft.search(**{**study, "n_trials": 1})
    with pytest.raises(AutopeftError, match="goes on with the"):
        autopeft.search(**{**study, "data": study["data"], "splits": {**study["splits"], "seed": 1}})


def test_a_folder_that_is_no_study_is_refused(study: dict[str, Any]) -> None:
    folder = Path(study["output_dir"]) / study["study_name"]
    folder.mkdir(parents=True)
    (folder / "study.json").write_text("not ours")
    with pytest.raises(AutopeftError, match="cannot be read"):
        autopeft.search(**study)
    with pytest.raises(AutopeftError):
        autopeft.open(folder.parent)
