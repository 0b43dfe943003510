"""A search for a language model from end to end, on a tiny Llama."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import autopeft
from autopeft.errors import AutopeftError, ResultError
from autopeft.spec.trial import Outcome
from tests.tasks.generated_language import FORMS, save_tiny_llama, sentences, write_csv

SPACE: dict[str, Any] = {
    "quantization": ["none", "nf4"],
    "blocks": {
        "lora": {"use": [True, False], "rank": [1, 2, 4], "learning_rate": {"log": [1e-3, 3e-2]}},
        "adapter": {"use": [True, False], "size": [2, 8]},
        "prefix": {"use": [True, False], "length": {"int": [1, 4]}},
    },
    "require": {"any_of": ["lora", "adapter", "prefix"]},
}


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of a tiny Llama with its tokenizer."""
    return save_tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def language_study(llama: str, tmp_path: Path) -> dict[str, Any]:
    """Return the arguments of a search that takes seconds, without objectives: the task says them."""
    return {
        "model": llama,
        "data": write_csv(sentences(200), tmp_path / "fruit.csv"),
        "task": "causal-lm",
        "columns": {"group": "source"},
        "splits": {"train": 100, "validation": 40, "test": 40},
        "space": SPACE,
        "training": {"epochs": 1, "batch_size": 16, "precision": "fp32", "kernel": "sdpa"},
        "n_trials": 4,
        "study_name": "fruit",
        "output_dir": str(tmp_path / "runs"),
    }


def test_a_search_answers_with_adapters_scores_and_samples(language_study: dict[str, Any], tmp_path: Path) -> None:
    result = autopeft.search(**language_study)
    assert isinstance(result, autopeft.SearchResult)
    state = result.state
    assert state.spec.objectives == ("perplexity", "trainable_params")
    assert [trial.baseline for trial in state.trials[:2]] == ["yardstick", "base"]
    base = state.base
    assert base is not None
    assert (base.outcome, base.value("trainable_params")) == (Outcome.COMPLETE, 0)
    assert len(result.front) >= 1
    assert base.number not in {trial.number for trial in result.front}
    checked = {trial.number for trial in result.front} | {base.number}
    assert set(state.tests) >= checked
    assert set(state.samples) >= checked
    assert all(len(samples) == 4 for samples in state.samples.values())
    best = result.best("perplexity")
    assert best.scores["perplexity"] < base.scores["perplexity"]
    assert best.scores["perplexity"] == pytest.approx(np.exp(best.scores["loss"]))
    for metric in ("perplexity", "loss", "token_accuracy"):
        comparison = result.compare(best, base, metric)
        assert comparison.validation.paired
        assert comparison.test is not None
        assert comparison.test.paired
    assert autopeft.open(state.folder).state == state

    target = tmp_path / "adapter"
    result.export(best, target)
    model, tokenizer = autopeft.load(target)
    sample = state.samples[best.number][0]
    asked = tokenizer(sample.prompt, return_tensors="pt")
    with torch.no_grad():
        written = model.generate(**asked, max_new_tokens=48, do_sample=False)[0, asked["input_ids"].shape[1] :]
    text = tokenizer.decode(written, skip_special_tokens=True).strip()
    assert sample.output.removesuffix(" …").split()[:5] == text.split()[:5]
    with pytest.raises((ResultError, AutopeftError)):
        result.export(base, tmp_path / "nothing")


def test_the_same_call_again_changes_nothing(language_study: dict[str, Any]) -> None:
    first = autopeft.search(**language_study)
    again = autopeft.search(**language_study)
    assert again.state.trials == first.state.trials
    assert again.state.samples == first.state.samples


@pytest.mark.parametrize(
    "form", ["messages", *(pytest.param(f, marks=pytest.mark.slow) for f in FORMS if f != "messages")]
)
def test_a_dry_run_reads_every_form(language_study: dict[str, Any], form: str, tmp_path: Path) -> None:
    data = write_csv(sentences(200, form=form), tmp_path / f"{form}.csv")
    answer = autopeft.search(**{**language_study, "data": data}, dry_run=True)
    assert isinstance(answer, autopeft.DryRun)
    assert answer.feasible_share == 1.0
    column = {"text": "text = text", "completion": "completion = completion", "messages": "messages = messages"}[form]
    assert any(column in note for note in answer.notes)


def test_predictions_on_disk_are_rows_and_labels_are_target_tokens(language_study: dict[str, Any]) -> None:
    result = autopeft.search(**{**language_study, "n_trials": 1})
    folder = result.state.folder / "predictions"
    for split in ("validation", "test"):
        labels = np.array(json.loads((folder / f"{split}-labels.json").read_text()))
        rows = np.array(json.loads((folder / f"{split}-1.json").read_text()))
        assert rows.shape == (len(labels), 2)
        assert (rows[:, 1] <= labels).all()
        scores = result.state.base.scores if split == "validation" else result.state.tests[1].scores
        assert scores["loss"] == pytest.approx(rows[:, 0].sum() / labels.sum())


def test_a_design_of_which_nothing_trains_is_never_proposed(language_study: dict[str, Any]) -> None:
    """A space that does not rule it out draws it often: each block is left out half of the time."""
    space = {"blocks": {"lora": {"use": [True, False], "rank": [1, 2]}}}
    result = autopeft.search(**{**language_study, "space": space, "sampler": "random"})
    assert result.state.n_refused["requirement"] >= 1
    assert all(trial.design.blocks for trial in result.state.trials if not trial.baseline)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "causal_lm"}, "task must be one of causal-lm, text-classification.*did you mean 'causal-lm'"),
        ({"metric": "accuracy"}, "a quality of causal-lm must be one of perplexity, loss, token_accuracy"),
        ({"columns": {"text": "prompt", "completion": "completion"}}, "columns names text, completion"),
        ({"columns": {"label": "completion"}}, "columns.label is not a known key"),
        ({"training": {"max_length": 1}}, "max_length >= 2"),
    ],
)
def test_a_mistake_is_named_before_anything_trains(
    language_study: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(AutopeftError, match=message):
        autopeft.search(**{**language_study, **changes})
    assert not list(Path(language_study["output_dir"]).rglob("*.safetensors"))
