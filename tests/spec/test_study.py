"""Studies: every key checked, every error with its key, value and way out."""

from pathlib import Path

import pytest

from autopeft.errors import AutopeftError
from autopeft.spec.study import StudySpec, load_study, make_study

GOOD = {"model": "bert", "data": "reviews.csv"}


def test_a_study_round_trips() -> None:
    spec = make_study({**GOOD, "budget": {"peak_memory": "8GiB"}, "timeout": "1h30m", "training": {"epochs": 3}})
    assert spec.timeout == 5400
    assert StudySpec(**spec.to_dict()) == spec


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modle": "x"}, "modle is not a known key; did you mean 'model'"),
        ({"model": None}, "model: .*but got None"),
        ({"training": {"epoch": 3}}, "training.epoch is not a known key; did you mean 'epochs'"),
        ({"training": {"batch_size": 0}}, "training.batch_size: .*greater than 0, but got 0"),
        ({"splits": {"valid": 0.1}}, "splits.valid is not a known key; did you mean 'validation'"),
        ({"early_stopping": {"rungs": [0.5, 0.25]}}, "rungs must rise"),
        ({"n_trials": 0}, "n_trials: .*greater than 0"),
        ({"timeout": "soon"}, "timeout: .*'2h', but got 'soon'"),
        ({"objectives": ["acuracy", "trainable_params"]}, "did you mean 'accuracy'"),
        ({"objectives": ["accuracy"]}, "at least one quality metric and one cost"),
        ({"objectives": ["trainable_params", "peak_memory"]}, "at least one quality metric and one cost"),
        ({"objectives": "accuracy"}, "list of names"),
        ({"budget": {"memory": "8GiB"}}, "budget.memory is not a known key; did you mean 'peak_memory'"),
        ({"budget": {"peak_memory": "8 apples"}}, "^budget.peak_memory must be .*'8GiB'.*but got '8 apples'$"),
        ({"budget": {"peak_memory": "50%"}}, "only trainable_params can be a percentage"),
        ({"budget": {"trainable_params": 0}}, "> 0 must hold"),
        (
            {"budget": {"peak_memory": "0.9x yardstick"}, "yardstick": None},
            "yardstick: a study with budget.peak_memory='0.9x yardstick' needs a yardstick.*as an amount",
        ),
        ({"study_name": "../other"}, "letters, digits"),
        ({"executor": "local", "n_workers": 2}, "n_workers=1"),
        ({"executor": {"workers": 8}, "n_workers": 2}, "executor.workers=8 is another name of n_workers.*but got 2"),
        ({"yardstick": {"blocks": [{"lora": {"rank": -1}}]}}, "rank"),
        ({"sampler": "tpee"}, "sampler"),
    ],
)
def test_a_mistake_is_named_before_anything_runs(values: dict[str, object], message: str) -> None:
    with pytest.raises(AutopeftError, match=message):
        make_study({**GOOD, **values})


@pytest.mark.parametrize(
    ("values", "objectives"),
    [
        ({}, ("accuracy", "trainable_params")),
        ({"task": "causal-lm"}, ("perplexity", "trainable_params")),
        ({"task": "causal-lm", "metric": "loss"}, ("loss", "trainable_params")),
        ({"metric": "macro_f1"}, ("macro_f1", "trainable_params")),
        ({"task": "causal-lm", "objectives": ["loss", "peak_memory"]}, ("loss", "peak_memory")),
    ],
)
def test_what_is_optimised_by_default_depends_on_the_task(values: dict[str, object], objectives: object) -> None:
    spec = make_study({**GOOD, **values})
    assert spec.objectives == objectives
    assert StudySpec(**spec.to_dict()) == spec


def test_an_unknown_task_or_sampler_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(
        AutopeftError, match="task must be one of causal-lm, text-classification, but got 'no-such-task'"
    ):
        make_study({**GOOD, "task": "no-such-task"})
    with pytest.raises(AutopeftError, match=r"a sampler must be one of auto, .*tpe-multivariate, but got 'best'"):
        make_study({**GOOD, "sampler": "best"})


def test_a_missing_key_is_required() -> None:
    with pytest.raises(AutopeftError, match="data is required"):
        make_study({"model": "bert"})


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_study_file_with_overrides(tmp_path: Path) -> None:
    path = write(tmp_path / "s.yaml", "model: bert\ndata: reviews.csv\nn_trials: 8\ntraining: {epochs: 1}\n")
    spec = load_study(path, ["n_trials=20", "training.batch_size=4", "budget.trainable_params=2%", "timeout=2h"])
    assert spec.n_trials == 20
    assert (spec.training.epochs, spec.training.batch_size) == (1, 4)
    assert spec.budget == {"trainable_params": "2%"}
    assert spec.timeout == 7200


def test_paths_are_relative_to_the_study_file(tmp_path: Path) -> None:
    write(tmp_path / "reviews.csv", "text,label\n")
    path = write(tmp_path / "s.yaml", "model: hub/name\ndata: reviews.csv\n")
    spec = load_study(path)
    assert spec.data == str(tmp_path / "reviews.csv")
    assert spec.model == "hub/name"


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("model: a\ndata: b\ntrails: 3\n", [], "s.yaml, line 3: trails is not a known key"),
        ("model: a\ndata: b\ntraining:\n  epochs: 0\n", [], "s.yaml, line 4: training.epochs"),
        ("model: a\ndata: b\n", ["n_trails=3"], "did you mean 'n_trials'"),
        ("model: a\ndata: b\n", ["n_trials"], "key=value"),
        ("model: a\ndata: b\n", ["n_trials=many"], "n_trials"),
        ("- model\n", [], "keys and values"),
        ("model: [\n", [], "line"),
    ],
)
def test_a_mistake_in_a_file_gets_its_line(tmp_path: Path, text: str, overrides: list[str], message: str) -> None:
    with pytest.raises(AutopeftError, match=message):
        load_study(write(tmp_path / "s.yaml", text), overrides)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(AutopeftError, match=r"none\.yaml"):
        load_study(tmp_path / "none.yaml")
