import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, mean_squared_error

from autopeft.errors import ResultError
from autopeft.metrics import (
    METRICS,
    _macro_f1_of_margins,
    _matthews_of_margins,
    _resampled,
    bootstrapped,
    paired_difference,
)
from autopeft.spec.objective import Objective

SKLEARN = {
    "accuracy": accuracy_score,
    "macro_f1": lambda t, p: f1_score(t, p, average="macro", zero_division=0),
    "matthews": matthews_corrcoef,
}


def draw(seed: int, n: int = 300, n_classes: int = 3, skill: float = 0.7) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, and two sets of predictions that agree with each other more than chance would have it."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(n_classes, size=n, p=np.array([0.6, 0.3, 0.1]))
    a = np.where(rng.random(n) < skill, labels, rng.integers(n_classes, size=n))
    b = np.where(rng.random(n) < 0.85, a, rng.integers(n_classes, size=n))
    return labels, a, b


def one_by_one(name: str, labels: np.ndarray, *predictions: np.ndarray, n_resamples: int = 4000) -> list[np.ndarray]:
    """The oracle: scikit-learn on each resample of the examples, drawn one by one."""
    rng = np.random.default_rng(7)
    rows = [rng.integers(len(labels), size=len(labels)) for _ in range(n_resamples)]
    return [np.array([SKLEARN[name](labels[row], made[row]) for row in rows]) for made in predictions]


@pytest.mark.parametrize("name", sorted(METRICS))
def test_scores_are_those_of_scikit_learn(name: str) -> None:
    labels, a, _ = draw(0)
    assert METRICS[name].score(labels, a)[0] == pytest.approx(SKLEARN[name](labels, a))


@pytest.mark.filterwarnings("ignore:A single label was found")
@pytest.mark.parametrize("statistic", ["macro_f1", "matthews"])
@settings(max_examples=50, deadline=None)
@given(data=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_the_vectorised_statistics_are_scikit_learns(statistic: str, data: list[tuple[int, int]]) -> None:
    labels, made = np.array(data).T
    classes = np.unique(np.array(data))
    is_target, is_made = (np.stack([labels, made])[:, :, None] == classes).astype(float)
    margins = [(is_target * is_made).sum(0)[None], is_target.sum(0)[None], is_made.sum(0)[None]]
    formula = {"macro_f1": _macro_f1_of_margins, "matthews": _matthews_of_margins}[statistic]
    assert formula(*margins)[0] == pytest.approx(SKLEARN[statistic](labels, made))


@pytest.mark.parametrize("name", sorted(METRICS))
def test_standard_errors_agree_with_an_example_by_example_bootstrap(name: str) -> None:
    labels, a, b = draw(1)
    resampled_a, resampled_b = one_by_one(name, labels, a, b, n_resamples=300)
    # 300 and 1,000 resamples know a standard deviation to 4 % and 2 %: 15 % is three standard errors.
    assert METRICS[name].score(labels, a)[1] == pytest.approx(resampled_a.std(), rel=0.15)
    difference, standard_error = paired_difference(METRICS[name], labels, a, b)
    assert difference == pytest.approx(SKLEARN[name](labels, a) - SKLEARN[name](labels, b))
    assert standard_error == pytest.approx((resampled_a - resampled_b).std(), rel=0.15)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_pairing_takes_out_what_two_designs_share(name: str) -> None:
    labels, a, b = draw(2)
    _, paired = paired_difference(METRICS[name], labels, a, b)
    unpaired = np.hypot(METRICS[name].score(labels, a)[1], METRICS[name].score(labels, b)[1])
    assert paired < 0.8 * unpaired
    assert paired_difference(METRICS[name], labels, a, a) == (0.0, 0.0)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_the_difference_changes_sign_with_the_order(name: str) -> None:
    labels, a, b = draw(3)
    forward, backward = paired_difference(METRICS[name], labels, a, b), paired_difference(METRICS[name], labels, b, a)
    assert forward[0] == pytest.approx(-backward[0])
    assert forward[1] == pytest.approx(backward[1], rel=0.1)
    assert paired_difference(METRICS[name], labels, a, b) == forward


def test_resamples_have_as_many_examples_as_the_split() -> None:
    labels, a, _ = draw(4)
    for total in _resampled(lambda _, targets, made: np.stack([targets.sum(1), made.sum(1)]), labels, [a])[0]:
        assert (total == len(labels)).all()


def test_constant_predictions_have_no_matthews_correlation() -> None:
    zeros = np.zeros(4, dtype=np.int64)
    assert METRICS["matthews"].score(np.array([0, 1, 1, 0]), zeros) == (0.0, 0.0)
    assert METRICS["matthews"].score(zeros, zeros) == (0.0, 0.0)


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ResultError, match="3 labels and 2 predictions"):
        paired_difference(METRICS["accuracy"], [0, 1, 1], [0, 1], [0, 1, 1])
    with pytest.raises(ResultError, match="0 labels"):
        paired_difference(METRICS["accuracy"], [], [], [])


def test_a_metric_of_any_kind_has_errors_from_resampled_examples() -> None:
    """The bootstrap is that of scipy, and examples that both designs answer alike cancel."""
    generator = np.random.default_rng(0)
    targets = generator.normal(size=200)
    a = targets + generator.normal(size=200)
    b = a + 0.1 * generator.normal(size=200)
    objective = Objective(name="rmse", direction="minimize", kind="quality", best=0.0)
    metric = bootstrapped(objective, lambda targets, made: float(np.sqrt(np.mean((targets - made) ** 2))))
    value, error = metric.score(targets, a)
    assert value == pytest.approx(mean_squared_error(targets, a) ** 0.5)
    expected = bootstrap((targets, a), lambda t, m, axis: np.sqrt(np.mean((t - m) ** 2, axis=axis)), paired=True, rng=1)
    assert error == pytest.approx(expected.standard_error, rel=0.1)
    difference, paired = paired_difference(metric, targets, a, b)
    assert difference == pytest.approx(value - metric.score(targets, b)[0])
    assert 0 < paired < 0.3 * error
    assert paired_difference(metric, targets, a, a) == (0.0, 0.0)
