import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from autopeft.errors import ResultError
from autopeft.metrics import METRICS, TOKEN_METRICS, paired_difference
from autopeft.results.comparison import Comparer, Difference, interval
from autopeft.results.result import SearchResult
from autopeft.spec.objective import find_objective
from tests.results.generated import Builder, lora


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "matthews"])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_differences_come_from_the_stored_predictions(result: SearchResult, metric: str, split: str) -> None:
    folder = result.state.folder / "predictions"
    labels, a, b = (json.loads((folder / f"{split}-{which}.json").read_text()) for which in ("labels", 18, 0))
    difference = getattr(result.compare(18, 0, metric), split)
    assert (difference.value, difference.standard_error) == paired_difference(METRICS[metric], labels, a, b)
    assert difference.paired


def test_a_trial_that_was_not_tested_has_no_difference_on_test(result: SearchResult) -> None:
    comparison = result.compare(7, 0)
    assert comparison.test is None
    assert comparison.soundest is comparison.validation
    assert result.compare(18, 0).soundest.split == "test"


def test_without_predictions_the_error_is_that_of_independent_splits(build: Builder) -> None:
    a, b = build.add(lora(1), params=1, skill=0.8), build.add(lora(2), params=2, skill=0.7)
    (build.folder / "predictions/validation-1.json").unlink()
    difference = SearchResult(build.state()).compare(a, b).validation
    expected = (a.standard_errors["accuracy"] ** 2 + b.standard_errors["accuracy"] ** 2) ** 0.5
    assert not difference.paired
    assert difference.value == pytest.approx(0.1)
    assert difference.standard_error == pytest.approx(expected)


def test_files_that_do_not_fit_are_named(build: Builder) -> None:
    a, b = build.add(lora(1), params=1, skill=0.8), build.add(lora(2), params=2, skill=0.7)
    path = build.folder / "predictions/validation-1.json"
    path.write_text('["half a fi')
    with pytest.raises(ResultError, match=r"validation-1\.json must be a JSON list"):
        SearchResult(build.state()).compare(a, b)
    path.write_text("[0, 1]")
    with pytest.raises(ResultError, match="600 labels and 2 predictions"):
        SearchResult(build.state()).compare(a, b)


def test_trials_without_scores_are_not_compared(result: SearchResult) -> None:
    with pytest.raises(ResultError, match="trials 17 and 0 have no accuracy in common"):
        result.compare(17, 0)
    with pytest.raises(ResultError, match="one of 0 to 21, but got 99"):
        result.compare(99, 0)


def test_clear_means_that_the_interval_leaves_out_zero() -> None:
    for value, clear in ((0.03, True), (-0.03, True), (0.019, False), (0.0, False)):
        difference = Difference(value=value, standard_error=0.01, split="test")
        low, high = difference.interval
        assert difference.is_clear == clear == (not low <= 0 <= high)
    assert not Difference(value=0.0, standard_error=0.0, split="test").is_clear


def test_intervals_hold_95_percent_and_end_at_the_ideal() -> None:
    low, high = interval(0.5, 0.1)
    assert norm.cdf(high, 0.5, 0.1) - norm.cdf(low, 0.5, 0.1) == pytest.approx(0.95)
    assert interval(0.99, 0.1, find_objective("accuracy"))[1] == 1.0


@pytest.mark.parametrize("metric", ["perplexity", "loss", "token_accuracy"])
def test_rows_of_a_language_model_are_compared_as_pairs(build: Builder, metric: str) -> None:
    """Against a bootstrap over examples, drawn one by one."""
    rng = np.random.default_rng(0)
    n_targets = rng.integers(1, 30, size=150)
    hardness = rng.gamma(4, 0.5, size=150)
    folder, trials, rows = build.folder / "predictions", [], []
    for skill in (0.8, 1.0):
        made = np.stack([n_targets * hardness * skill, rng.binomial(n_targets, np.exp(-hardness * skill))], axis=1)
        trial = build.add(lora(len(rows) + 1), params=1, skill=0.7)
        scores = {name: metric_of.score(n_targets, made)[0] for name, metric_of in TOKEN_METRICS.items()}
        trials.append(replace(trial, scores=scores, standard_errors=dict.fromkeys(scores, 1.0)))
        (folder / f"validation-{trial.number}.json").write_text(json.dumps(made.tolist()))
        rows.append(made)
    (folder / "validation-labels.json").write_text(json.dumps(n_targets.tolist()))
    state = build.state()
    state = replace(state, spec=state.spec.model_copy(update={"task": "causal-lm"}))
    difference = Comparer(state).difference(*trials, metric, "validation")
    assert difference is not None
    assert difference.paired
    column = 1 if metric == "token_accuracy" else 0
    draws = rng.integers(150, size=(3000, 150))
    a, b = (made[draws, column].sum(axis=1) / n_targets[draws].sum(axis=1) for made in rows)
    a, b = (np.exp(a), np.exp(b)) if metric == "perplexity" else (a, b)
    assert difference.standard_error == pytest.approx((a - b).std(), rel=0.1)
    better = trials[0].scores[metric] - trials[1].scores[metric]
    assert difference.value == pytest.approx(better if metric == "token_accuracy" else -better)
    assert difference.value > 0
