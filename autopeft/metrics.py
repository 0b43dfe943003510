"""Quality metrics: a score, its standard error over the examples, and paired differences.

A classification has one predicted class for each example. A language model has a row of two numbers: the summed
negative log-likelihood of the example's target tokens, and how many of them are right; what stands for its
label is the number of its target tokens.

Both arms use this module: training scores a split with it, results compare two designs on the same split.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from autopeft.errors import ResultError
from autopeft.spec.messages import one_of

N_RESAMPLES = 1000
"""Bootstrap resamples: the standard error itself is then known to about 2 %."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_Statistic = Callable[[Floats, Floats, Floats], Floats]


def accuracy(targets: Ints, predictions: Ints) -> tuple[float, float]:
    """Return the share of right predictions and its binomial standard error."""
    share = float(accuracy_score(targets, predictions))
    return share, float(np.sqrt(share * (1.0 - share) / len(targets)))


def macro_f1(targets: Ints, predictions: Ints) -> tuple[float, float]:
    """Return the unweighted mean F1 over the classes that occur, and its bootstrap standard error."""
    score = float(f1_score(targets, predictions, average="macro", zero_division=0))
    return score, _deviation(_resampled(_macro_f1, targets, [predictions])[0])


def matthews(targets: Ints, predictions: Ints) -> tuple[float, float]:
    """Return Matthews' correlation (0 where either side is constant), and its bootstrap standard error."""
    # scikit-learn warns where only one class occurs on either side; the correlation is 0 there by convention.
    constant = len(np.union1d(targets, predictions)) == 1
    score = 0.0 if constant else float(matthews_corrcoef(targets, predictions))
    return score, _deviation(_resampled(_matthews, targets, [predictions])[0])


METRICS: dict[str, Callable[[Ints, Ints], tuple[float, float]]] = {
    "accuracy": accuracy,
    "macro_f1": macro_f1,
    "matthews": matthews,
}
"""Every metric of classification by name: targets and predictions in, value and standard error out."""


def _token_metric(name: str) -> Callable[[Ints, Floats], tuple[float, float]]:
    """Return a metric of target tokens by name, and the standard error of the ratio that it is a function of.

    The error is over examples, whose tokens depend on each other.

    Source: the delta method for a ratio of sums; Cochran 1977, "Sampling Techniques", eq. 6.13.
    """

    def metric(n_targets: Ints, rows: Floats) -> tuple[float, float]:
        value, influences = _token_influences(name, n_targets, rows)
        return value, float(np.sqrt((influences**2).sum()))

    return metric


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


TOKEN_METRICS: dict[str, Callable[[Ints, Floats], tuple[float, float]]] = {
    name: _token_metric(name) for name in ("perplexity", "loss", "token_accuracy")
}
"""Every metric of a language model by name: target tokens of each example and rows in, value and standard error out."""


def can_pair(name: str, predictions: ArrayLike) -> bool:
    """Return whether a metric is a function of such predictions: classes, or rows of a language model."""
    return name in (TOKEN_METRICS if np.ndim(predictions) == 2 else METRICS)


def score(name: str, labels: ArrayLike, predictions: ArrayLike) -> float:
    """Return the metric called `name` of predicted class indices, or of a language model's rows.

    Raises:
        ResultError: There is no such metric, or the lengths differ.
    """
    if np.ndim(predictions) == 2:
        targets, (rows,) = _checked(TOKEN_METRICS, name, labels, [predictions])
        return TOKEN_METRICS[name](targets, rows)[0]
    targets, (classes,) = _classes(name, labels, [predictions])
    return METRICS[name](targets, classes)[0]


def paired_difference(name: str, labels: ArrayLike, a: ArrayLike, b: ArrayLike) -> tuple[float, float]:
    """Return `score(a) - score(b)` on the same examples, and the standard error of that difference.

    For accuracy the standard error is exact in form: the deviation over examples of (a is right) - (b is
    right), over the root of their number. For the metrics of a language model it is that of the difference of
    what each example adds to both, by the delta method. For the other metrics both are scored on the same seeded
    bootstrap resamples of the examples. Examples that a and b answer alike cancel, so this is never the error
    that two independent splits would have.

    Raises:
        ResultError: There is no such metric, or the lengths differ.
    """
    if np.ndim(a) == 2:
        n_targets, rows = _checked(TOKEN_METRICS, name, labels, [a, b])
        (value, moves), (other, other_moves) = (_token_influences(name, n_targets, part) for part in rows)
        return value - other, float(np.sqrt(((moves - other_moves) ** 2).sum()))
    targets, (first, second) = _classes(name, labels, [a, b])
    if name == "accuracy":
        gains = (first == targets).astype(np.float64) - (second == targets)
        return float(gains.mean()), float(gains.std() / np.sqrt(len(gains)))
    difference = METRICS[name](targets, first)[0] - METRICS[name](targets, second)[0]
    resampled = _resampled(_STATISTICS[name], targets, [first, second])
    return difference, _deviation(resampled[0] - resampled[1])


def _classes(name: str, labels: ArrayLike, predictions: Sequence[Any]) -> tuple[Ints, list[Ints]]:
    """Return labels and predictions as arrays of class indices, checked."""
    targets, arrays = _checked(METRICS, name, labels, predictions)
    return targets, [array.astype(np.int64) for array in arrays]


def _checked(
    known: Mapping[str, Any], name: str, labels: ArrayLike, predictions: Sequence[Any]
) -> tuple[Ints, list[Floats]]:
    """Return labels, and predictions with one entry for each."""
    if name not in known:
        raise ResultError(f"a metric {one_of(known, name)}")
    targets = np.asarray(labels).astype(np.int64)
    arrays = [np.asarray(values).astype(np.float64) for values in predictions]
    for array in arrays:
        if not len(targets) or array.shape[:1] != targets.shape or array.ndim != arrays[0].ndim:
            raise ResultError(
                f"each of one or more examples must have one label and one prediction, but got {len(targets)} labels "
                f"and {len(array)} predictions; they must come from the same split of the same study"
            )
    return targets, arrays


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


def _macro_f1(hits: Floats, targets: Floats, predictions: Floats) -> Floats:
    """Return macro F1 of confusion margins of shape [resample, class]; classes that a resample lacks do not count."""
    present = targets + predictions > 0
    f1 = np.divide(2 * hits, targets + predictions, out=np.zeros_like(hits), where=present)
    return np.asarray(f1.sum(axis=1) / present.sum(axis=1))


def _matthews(hits: Floats, targets: Floats, predictions: Floats) -> Floats:
    """Return the multi-class Matthews correlation of confusion margins of shape [resample, class].

    Source: Gorodkin 2004, "Comparing two K-category assignments by a K-category correlation coefficient", eq. 8.
    """
    n = targets.sum(axis=1)
    covariance = hits.sum(axis=1) * n - (targets * predictions).sum(axis=1)
    variance = (n**2 - (targets**2).sum(axis=1)) * (n**2 - (predictions**2).sum(axis=1))
    return np.asarray(np.divide(covariance, np.sqrt(variance), out=np.zeros_like(n), where=variance > 0))


_STATISTICS: dict[str, _Statistic] = {"macro_f1": _macro_f1, "matthews": _matthews}
