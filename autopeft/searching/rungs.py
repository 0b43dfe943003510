"""Early stopping for several objectives: successive halving within cost strata.

Efficiency does not change with training length, so a rung that ranked on it would keep every tiny design
alive. Trials are therefore compared on quality, against trials of about the same cost. Techniques that
start slowly (prefixes, prompts) also compete among themselves, so that a slow start alone ends none. A quantized
base costs some quality for memory that the strata may not count: the best trial of each base goes on as well.

Source: asynchronous successive halving, Li et al. 2020, section 3.2; the strata and the quota are ours.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autopeft.spec.study import EarlyStopping


@dataclass(frozen=True, kw_only=True)
class RungEntry:
    """A trial's score at one rung.

    Attributes:
        trial: Number of the trial that started the training; trials that continue it share it.
        cost: The first cost objective.
        loss: The quality metric with the sign that makes smaller better.
        tie: Decides between equal losses, smaller is better: early on many trials still predict one class, and
            their validation loss alone tells them apart.
        slow_start: Whether all of the design's blocks improve late.
        base: Quantization of the base.
    """

    trial: int
    cost: float
    loss: float
    tie: float = 0.0
    slow_start: bool = False
    base: str = "none"


class Rung:
    """The scores of all trials that reached one rung, and which of them may go on."""

    def __init__(self, rules: EarlyStopping) -> None:
        self._rules = rules
        self._rows: dict[int, int] = {}
        self._bases: dict[str, int] = {}
        self._table = np.empty((16, 6))
        self._chosen: frozenset[int] | None = None

    def put(self, entry: RungEntry) -> None:
        """Add a trial's score, or replace the one it has."""
        row = self._rows.setdefault(entry.trial, len(self._rows))
        if row == len(self._table):
            self._table = np.concatenate([self._table, np.empty_like(self._table)])
        base = self._bases.setdefault(entry.base, len(self._bases))
        self._table[row] = (entry.trial, entry.cost, entry.loss, entry.tie, entry.slow_start, base)
        self._chosen = None

    def chosen(self) -> frozenset[int]:
        """Return the trials that may go on: the best one in `eta` of each stratum.

        Of the trials that start slowly, the best one in `eta` may go on as well, whatever their stratum, and so
        may the best one of each base. Equal losses are told apart by `tie`, then by the earlier trial.
        """
        if self._chosen is None:
            trial, cost, loss, tie, slow_start, base = self._table[: len(self._rows)].T
            best_first = np.lexsort((trial, tie, loss))
            stratum = strata(cost, trial, self._rules)
            groups = [stratum == number for number in range(int(stratum.max(initial=-1)) + 1)]
            rows = [_best(best_first, group, self._rules.eta) for group in (*groups, slow_start > 0)]
            rows += [_best(best_first, base == number, math.inf) for number in self._bases.values()]
            self._chosen = frozenset(trial[np.concatenate(rows)].astype(int).tolist())
        return self._chosen


def strata(costs: NDArray[np.float64], trials: NDArray[np.float64], rules: EarlyStopping) -> NDArray[np.int64]:
    """Return the stratum of each entry, from the cheapest, 0: equally filled, and few while there are few entries.

    A stratum holds at least `2 * eta` entries where there is more than one, so that its halving means something.
    Equal costs are told apart by the earlier trial.
    """
    number = max(1, min(rules.strata, int(len(costs) // (2 * rules.eta))))
    stratum = np.empty(len(costs), dtype=np.int64)
    edges = [len(costs) * i // number for i in range(number + 1)]
    stratum[np.lexsort((trials, costs))] = np.repeat(np.arange(number), np.diff(edges))
    return stratum


def _best(best_first: NDArray[np.int64], group: NDArray[np.bool_], eta: float) -> NDArray[np.int64]:
    """Return the best one in `eta` of a group, at least one of a group that has any."""
    members = best_first[group[best_first]]
    return members[: math.ceil(len(members) / eta) if math.isfinite(eta) else 1]
