"""Quality metrics: a score, its standard error over the examples, and the paired difference of two designs.

Two families are here, and a task may bring metrics of its own. A classification has one predicted class for each
example. A language model has a row of two numbers: the summed negative log-likelihood of the example's target tokens,
and how many of them are right; the number of its target tokens stands for its label.

Both arms use this module: training scores a split with it, results compare two designs on the same split.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import bootstrap
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from autopeft.errors import ResultError
from autopeft.spec.objective import OBJECTIVES, Objective
from autopeft.spec.task import load_task, task_names

N_RESAMPLES = 1000
"""Bootstrap resamples: the standard error itself is then known to about 2 %."""

N_SLOW_RESAMPLES = 200
"""Bootstrap resamples of a statistic that is computed on each of them: its error is then known to about 5 %."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_Statistic = Callable[[Floats, Floats, Floats], Floats]
_Score = Callable[[Any, Any], tuple[float, float]]
_Paired = Callable[[Any, Any, Any], tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A quality metric: its unit and direction, and how it is computed.

    Attributes:
        objective: Name, direction, label, and the best and the worst value.
        score: From targets and predictions, one row for each example, to the value and its standard error.
        n_dims: Dimensions of predictions: 1 for one value an example, 2 for a row of several.
        paired: From targets and the predictions of two designs on the same examples to the difference of their scores
            and its standard error; examples that both answer alike cancel. None where predictions do not tell.
    """

    objective: Objective
    score: _Score
    n_dims: int = 1
    paired: _Paired | None = None


def find_metric(task: str, name: str) -> Metric | None:
    """Return a metric of a task; None where the task is not installed, or has no metric of that name."""
    if task not in task_names():
        return None
    metric: Metric | None = load_task(task).metrics.get(name)
    return metric


def bootstrapped(objective: Objective, statistic: Callable[[Floats, Floats], float]) -> Metric:
    """Return a metric whose standard errors are those of seeded bootstrap resamples of the examples.

    Args:
        objective: What it is.
        statistic: From targets and predictions, one for each example, to the value.
    """

    def error(n_examples: int, of_rows: Callable[[Ints], float]) -> float:
        resamples = bootstrap(
            (np.arange(n_examples),),
            of_rows,
            n_resamples=N_SLOW_RESAMPLES,
            vectorized=False,
            method="percentile",
            rng=0,
        )
        return float(resamples.standard_error)

    def score(targets: Floats, made: Floats) -> tuple[float, float]:
        return statistic(targets, made), error(len(targets), lambda rows: statistic(targets[rows], made[rows]))

    def paired(targets: Floats, a: Floats, b: Floats) -> tuple[float, float]:
        def gap(rows: Ints) -> float:
            return statistic(targets[rows], a[rows]) - statistic(targets[rows], b[rows])

        return gap(np.arange(len(targets))), error(len(targets), gap)

    return Metric(objective=objective, score=score, paired=paired)


def paired_difference(metric: Metric, labels: ArrayLike, a: ArrayLike, b: ArrayLike) -> tuple[float, float]:
    """Return the score of `a` less that of `b` on the same examples, and the standard error of that difference.

    Examples that a and b answer alike cancel, so this is never the error that two independent splits would have.

    Raises:
        ResultError: The metric cannot be paired, or the lengths differ.
    """
    if metric.paired is None:
        raise ResultError(f"two designs cannot be paired by {metric.objective.name}: predictions do not tell it")
    targets, first, second = np.asarray(labels), np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    for array in (first, second):
        if not len(targets) or array.shape[:1] != targets.shape[:1] or array.ndim != first.ndim:
            raise ResultError(
                f"each of one or more examples must have one label and one prediction, but got {len(targets)} labels "
                f"and {len(array)} predictions; they must come from the same split of the same study"
            )
    return metric.paired(targets, first, second)


# Classification ----------------------------------------------------------------------------------------------------


def _accuracy(targets: Ints, predictions: Ints) -> tuple[float, float]:
    """Return the share of right predictions and its binomial standard error."""
    share = float(accuracy_score(targets, predictions))
    return share, float(np.sqrt(share * (1.0 - share) / len(targets)))


def _paired_accuracy(targets: Ints, a: Ints, b: Ints) -> tuple[float, float]:
    """Return the difference, and the deviation over examples of (a is right) - (b is right) over their root."""
    gains = (a == targets).astype(np.float64) - (b == targets)
    return float(gains.mean()), float(gains.std() / np.sqrt(len(gains)))


def _macro_f1(targets: Ints, predictions: Ints) -> float:
    """Return the unweighted mean F1 over the classes that occur."""
    return float(f1_score(targets, predictions, average="macro", zero_division=0))


def _matthews(targets: Ints, predictions: Ints) -> float:
    """Return Matthews' correlation, 0 where either side is constant."""
    # scikit-learn warns where only one class occurs on either side; the correlation is 0 there by convention.
    constant = len(np.union1d(targets, predictions)) == 1
    return 0.0 if constant else float(matthews_corrcoef(targets, predictions))


def _of_margins(name: str, value: Callable[[Ints, Ints], float], of_resamples: _Statistic) -> Metric:
    """Return a metric of classes that is a function of confusion margins, with bootstrap standard errors."""

    def score(targets: Ints, predictions: Ints) -> tuple[float, float]:
        return value(targets, predictions), _deviation(_resampled(of_resamples, targets, [predictions])[0])

    def paired(targets: Ints, a: Ints, b: Ints) -> tuple[float, float]:
        first, second = _resampled(of_resamples, targets, [a, b])
        return value(targets, a) - value(targets, b), _deviation(first - second)

    return Metric(objective=OBJECTIVES[name], score=score, paired=paired)


def _token_score(name: str, n_targets: Ints, rows: Floats) -> tuple[float, float]:
    """Return a metric of target tokens by name, and the standard error of the ratio that it is a function of.

    The error is over examples, whose tokens depend on each other.

    Source: the delta method for a ratio of sums; Cochran 1977, "Sampling Techniques", eq. 6.13.
    """
    value, influences = _token_influences(name, n_targets, rows)
    return value, float(np.sqrt((influences**2).sum()))


def _paired_tokens(name: str, n_targets: Ints, a: Floats, b: Floats) -> tuple[float, float]:
    """Return the difference, and the error of the difference of what each example adds to both, by the delta method."""
    (value, moves), (other, other_moves) = (_token_influences(name, n_targets, rows) for rows in (a, b))
    return value - other, float(np.sqrt(((moves - other_moves) ** 2).sum()))


def _token_influences(name: str, n_targets: Ints, rows: Floats) -> tuple[float, Floats]:
    """Return a metric over all target tokens, and by how much each example moves it, to first order."""
    sums = rows[:, 1] if name == "token_accuracy" else rows[:, 0]
    ratio = float(sums.sum() / n_targets.sum())
    influences = (sums - ratio * n_targets) / n_targets.sum()
    if name != "perplexity":
        return ratio, influences
    with np.errstate(over="ignore", invalid="ignore"):  # infinity is the answer then, and its error unknown
        perplexity = float(np.exp(ratio))
        return perplexity, influences * perplexity


def _deviation(values: Floats) -> float:
    return float(np.std(values, ddof=1))


def _resampled(statistic: _Statistic, targets: Ints, predictions: Sequence[Ints]) -> list[Floats]:
    """Return a statistic of each array of predictions over the same resamples of the examples.

    Drawing n examples with replacement is a multinomial draw over the distinct tuples of target and
    predictions, so all resamples are made at once, and the cost does not grow with the number of examples.
    """
    cells, counts = np.unique(np.stack([targets, *predictions]), axis=1, return_counts=True)
    classes = np.unique(cells)
    generator = np.random.default_rng(0)
    draws = generator.multinomial(len(targets), counts / len(targets), size=N_RESAMPLES).astype(np.float64)
    is_target, *are_predicted = (cells[:, :, None] == classes).astype(np.float64)
    margin = draws @ is_target
    return [statistic(draws @ (is_target * made), margin, draws @ made) for made in are_predicted]


def _macro_f1_of_margins(hits: Floats, targets: Floats, predictions: Floats) -> Floats:
    """Return macro F1 of confusion margins of shape [resample, class]; classes that a resample lacks do not count."""
    present = targets + predictions > 0
    f1 = np.divide(2 * hits, targets + predictions, out=np.zeros_like(hits), where=present)
    return np.asarray(f1.sum(axis=1) / present.sum(axis=1))


def _matthews_of_margins(hits: Floats, targets: Floats, predictions: Floats) -> Floats:
    """Return the multi-class Matthews correlation of confusion margins of shape [resample, class].

    Source: Gorodkin 2004, "Comparing two K-category assignments by a K-category correlation coefficient", eq. 8.
    """
    n = targets.sum(axis=1)
    covariance = hits.sum(axis=1) * n - (targets * predictions).sum(axis=1)
    variance = (n**2 - (targets**2).sum(axis=1)) * (n**2 - (predictions**2).sum(axis=1))
    return np.asarray(np.divide(covariance, np.sqrt(variance), out=np.zeros_like(n), where=variance > 0))


METRICS: dict[str, Metric] = {
    "accuracy": Metric(objective=OBJECTIVES["accuracy"], score=_accuracy, paired=_paired_accuracy),
    "macro_f1": _of_margins("macro_f1", _macro_f1, _macro_f1_of_margins),
    "matthews": _of_margins("matthews", _matthews, _matthews_of_margins),
}
"""Metrics of classes, by name: targets and predictions are class indices, [n_examples]."""
TOKEN_METRICS: dict[str, Metric] = {
    name: Metric(
        objective=OBJECTIVES[name], score=partial(_token_score, name), n_dims=2, paired=partial(_paired_tokens, name)
    )
    for name in ("perplexity", "loss", "token_accuracy")
}
"""Metrics of a language model, by name: targets are numbers of target tokens, predictions rows [n_examples, 2]."""
