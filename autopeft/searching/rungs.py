"""Early stopping for several objectives: successive halving within cost strata.

Efficiency does not change with training length, so a rung that ranked on it would keep every tiny design
alive. Trials are therefore compared on quality, against trials of about the same cost. Techniques that
start slowly (prefixes, prompts) also compete among themselves, so that a slow start alone ends none. A quantized
base costs some quality for memory that the strata may not count: the best trial of each base goes on as well.

Source: asynchronous successive halving, Li et al. 2020, section 3.2; the strata and the quota are ours.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

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


def strata(entries: Sequence[RungEntry], rules: EarlyStopping) -> list[list[RungEntry]]:
    """Split entries by cost into equally filled strata, at most `rules.strata` and few while there are few entries.

    A stratum holds at least `2 * eta` entries where there is more than one, so that its halving means something.
    """
    if not entries:
        return []
    number = max(1, min(rules.strata, int(len(entries) // (2 * rules.eta))))
    ordered = sorted(entries, key=lambda entry: (entry.cost, entry.trial))
    edges = [len(ordered) * i // number for i in range(number + 1)]
    return [ordered[edges[i] : edges[i + 1]] for i in range(number)]


def promotable(entries: Sequence[RungEntry], rules: EarlyStopping) -> frozenset[int]:
    """Return the trials that may go on from a rung: the best one in `eta` of each stratum.

    Of the trials that start slowly, the best one in `eta` may go on as well, whatever their stratum. Equal losses
    are told apart by `tie`, then by the earlier trial.
    """
    bases = {entry.base: [other for other in entries if other.base == entry.base] for entry in entries}
    slow = [entry for entry in entries if entry.slow_start]
    chosen: set[int] = set()
    for group in (*strata(entries, rules), slow):
        best = sorted(group, key=lambda entry: (entry.loss, entry.tie, entry.trial))[
            : math.ceil(len(group) / rules.eta)
        ]
        chosen.update(entry.trial for entry in best)
    chosen.update(min(group, key=lambda entry: (entry.loss, entry.tie, entry.trial)).trial for group in bases.values())
    return frozenset(chosen)
