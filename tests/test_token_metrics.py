"""Metrics of a language model: ratios over all target tokens, with errors over examples, against brute force."""

import numpy as np
import pytest

from autopeft.errors import ResultError
from autopeft.metrics import TOKEN_METRICS, find_metric, paired_difference


def draw(seed: int, n: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return target tokens of examples, and the rows of two designs that find the same examples hard."""
    rng = np.random.default_rng(seed)
    n_targets = rng.integers(1, 40, size=n)
    hardness = rng.gamma(4, 0.5, size=n)
    made = []
    for skill in (1.0, 0.9):
        nll = n_targets * hardness * skill * rng.normal(1, 0.1, size=n)
        right = rng.binomial(n_targets, np.exp(-hardness * skill))
        made.append(np.stack([nll, right], axis=1))
    return n_targets, made[0], made[1]


def by_token(name: str, n_targets: np.ndarray, rows: np.ndarray) -> float:
    """The oracle: the mean over a list of all tokens."""
    column = 1 if name == "token_accuracy" else 0
    tokens = np.concatenate([np.full(n, value / n) for n, value in zip(n_targets, rows[:, column], strict=True)])
    return float(np.exp(tokens.mean())) if name == "perplexity" else float(tokens.mean())


def resampled(name: str, n_targets: np.ndarray, *rows: np.ndarray, n_resamples: int = 3000) -> list[np.ndarray]:
    """The oracle: the same bootstrap resamples of whole examples, drawn one by one, for every design."""
    rng = np.random.default_rng(7)
    draws = [rng.integers(len(n_targets), size=len(n_targets)) for _ in range(n_resamples)]
    column = 1 if name == "token_accuracy" else 0
    values = [np.array([part[d, column].sum() / n_targets[d].sum() for d in draws]) for part in rows]
    return [np.exp(value) for value in values] if name == "perplexity" else values


@pytest.mark.parametrize("name", TOKEN_METRICS)
def test_scores_are_over_all_tokens(name: str) -> None:
    n_targets, a, _ = draw(0)
    expected = by_token(name, n_targets, a)
    assert TOKEN_METRICS[name].score(n_targets, a)[0] == pytest.approx(expected)


@pytest.mark.parametrize("name", TOKEN_METRICS)
def test_standard_errors_agree_with_a_bootstrap_over_examples(name: str) -> None:
    n_targets, a, b = draw(1)
    of_a, of_b = resampled(name, n_targets, a, b)
    # 3,000 resamples know a deviation to 1.3 %; the delta method leaves out the curvature, here a few per cent.
    assert TOKEN_METRICS[name].score(n_targets, a)[1] == pytest.approx(of_a.std(), rel=0.1)
    difference, error = paired_difference(TOKEN_METRICS[name], n_targets, a, b)
    assert difference == pytest.approx(by_token(name, n_targets, a) - by_token(name, n_targets, b))
    assert error == pytest.approx((of_a - of_b).std(), rel=0.1)


@pytest.mark.parametrize("name", TOKEN_METRICS)
def test_pairing_takes_out_what_two_designs_share(name: str) -> None:
    n_targets, a, b = draw(2)
    _, paired = paired_difference(TOKEN_METRICS[name], n_targets, a, b)
    assert paired < 0.8 * np.hypot(
        TOKEN_METRICS[name].score(n_targets, a)[1], TOKEN_METRICS[name].score(n_targets, b)[1]
    )
    assert paired_difference(TOKEN_METRICS[name], n_targets, a, a) == (0.0, 0.0)
    forward, backward = (
        paired_difference(TOKEN_METRICS[name], n_targets, a, b),
        paired_difference(TOKEN_METRICS[name], n_targets, b, a),
    )
    assert forward == pytest.approx((-backward[0], backward[1]))


def test_a_hopeless_model_has_an_infinite_perplexity() -> None:
    assert TOKEN_METRICS["perplexity"].score(np.array([1]), np.array([[1e4, 0.0]]))[0] == np.inf


def test_a_task_says_what_can_be_paired() -> None:
    for task, name in (("causal-lm", "loss"), ("causal-lm", "perplexity"), ("text-classification", "accuracy")):
        assert find_metric(task, name).paired is not None
    assert find_metric("causal-lm", "accuracy") is None
    assert find_metric("a task that is not installed", "accuracy") is None
    loss_of_classes = find_metric("text-classification", "loss")
    with pytest.raises(ResultError, match="cannot be paired by loss"):
        paired_difference(loss_of_classes, [1.0], [1.0], [0.0])


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ResultError, match="2 labels and 1 predictions"):
        paired_difference(TOKEN_METRICS["loss"], [1, 2], [[1.0, 0.0]], [[1.0, 0.0], [2.0, 1.0]])
    with pytest.raises(ResultError, match="2 labels and 2 predictions"):
        paired_difference(TOKEN_METRICS["loss"], [1, 2], [[1.0, 0.0], [2.0, 1.0]], [1.0, 0.0])
