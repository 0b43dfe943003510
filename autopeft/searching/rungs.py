"""Early stopping for several objectives: successive halving within cost strata.

Efficiency does not change with training length, so a rung that ranked on it would keep every tiny design
alive. Trials are therefore compared on quality, against trials of about the same cost. Techniques that
start slowly (prefixes, prompts) also compete among themselves, so that a slow start alone ends none. A quantized
base costs some quality for memory that the strata may not count: the best trial of each base goes on as well.

Source: asynchronous successive halving, Li et al. 2020, section 3.2; the strata and the quota are ours.
"""

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from dataclasses import dataclass

from autopeft.spec.objective import Objective
from autopeft.spec.study import EarlyStopping
from autopeft.spec.trial import RungScore, TrialRecord, Verdict


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

    @classmethod
    def of(cls, record: TrialRecord, score: RungScore, *, root: int, metric: Objective, cost: Objective) -> "RungEntry":
        """Return what a rung compares of a trial, whose chain of continued trials began with trial `root`."""
        blocks = record.design.blocks
        return cls(
            trial=root,
            cost=record.value(cost.name),
            loss=metric.loss(score.scores[metric.name]),
            tie=score.scores.get("loss", 0.0),
            base=record.design.quantization,
            slow_start=bool(blocks) and all(block.slow_start for block in blocks),
        )


class Rung:
    """The scores of all trials that reached one rung, which of them may go on, and who waits for that.

    A score moves a few trials across the borders of their groups, and nothing else is looked at: it takes
    O(strata log n) comparisons, however many trials a study has.
    """

    def __init__(self, rules: EarlyStopping) -> None:
        self._rules = rules
        self._entries: dict[int, RungEntry] = {}
        self._by_cost: list[tuple[float, int]] = []
        self._strata: list[_Group] = [_Group(rules.eta)]
        self._edges = [0, 0]
        """Stratum i holds the places from edge i up to edge i + 1 of `_by_cost`."""
        self._slow = _Group(rules.eta)
        self._bases: dict[str, _Group] = {}
        self._chosen: Counter[int] = Counter()
        self._waiting: dict[int, None] = {}
        self._promotable: set[int] = set()

    def put(self, entry: RungEntry) -> None:
        """Add a trial's score, or replace the one it has."""
        known = self._entries.get(entry.trial)
        if known == entry:
            return
        if known is not None:
            self._remove(known)
        self._add(entry)

    def knows(self, trial: int) -> bool:
        """Return whether a trial has a score here."""
        return trial in self._entries

    def chosen(self) -> frozenset[int]:
        """Return the trials that may go on: the best one in `eta` of each stratum.

        Of the trials that start slowly, the best one in `eta` may go on as well, whatever their stratum, and so
        may the best one of each base. Equal losses are told apart by `tie`, then by the earlier trial. A stratum is
        an equal share of the trials in the order of their cost; there are fewer of them while there are few trials, so
        that each holds about `2 * eta` of them at least and its halving means something.
        """
        return frozenset(self._chosen)

    def verdict(self, trial: int) -> Verdict:
        """Return what is decided about a trial that has a score, and what it was compared with."""
        entry = self._entries[trial]
        stratum = bisect_right(self._edges, bisect_left(self._by_cost, (entry.cost, trial))) - 1
        group = self._strata[stratum]
        return Verdict(
            goes_on=trial in self._chosen,
            stratum=stratum,
            n_strata=len(self._strata),
            place=group.place(entry),
            n_compared=group.n,
            n_chosen=group.n_chosen,
            cut_loss=group.cut_loss,
            n_known=len(self._entries),
        )

    def stop(self, trial: int) -> None:
        """Note that a trial has stopped here, and may go on once later scores make it one of the best."""
        self._waiting.setdefault(trial)
        if trial in self._chosen:
            self._promotable.add(trial)

    def leave(self, trial: int) -> None:
        """Note that a trial waits no more."""
        self._waiting.pop(trial, None)
        self._promotable.discard(trial)

    def promotable(self) -> list[int]:
        """Return the trials that have stopped here and may go on now, in the order in which they stopped."""
        if len(self._promotable) <= 1:
            return list(self._promotable)
        return [trial for trial in self._waiting if trial in self._promotable]

    # Groups ---------------------------------------------------------------------------------------------------

    def _add(self, entry: RungEntry) -> None:
        self._entries[entry.trial] = entry
        for group in self._groups_besides(entry):
            self._note(group.add(entry))
        place = bisect_left(self._by_cost, (entry.cost, entry.trial))
        self._by_cost.insert(place, (entry.cost, entry.trial))
        stratum = min(bisect_right(self._edges, place), len(self._strata)) - 1
        self._shift(stratum, 1)
        self._note(self._strata[stratum].add(entry))
        self._settle()

    def _remove(self, entry: RungEntry) -> None:
        del self._entries[entry.trial]
        for group in self._groups_besides(entry):
            self._note(group.remove(entry))
        place = bisect_left(self._by_cost, (entry.cost, entry.trial))
        del self._by_cost[place]
        stratum = bisect_right(self._edges, place) - 1
        self._shift(stratum, -1)
        self._note(self._strata[stratum].remove(entry))
        self._settle()

    def _groups_besides(self, entry: RungEntry) -> "list[_Group]":
        """Return the groups that a trial competes in besides its stratum."""
        base = self._bases.setdefault(entry.base, _Group(math.inf))
        return [base, self._slow] if entry.slow_start else [base]

    def _shift(self, stratum: int, by: int) -> None:
        for edge in range(stratum + 1, len(self._edges)):
            self._edges[edge] += by

    def _settle(self) -> None:
        """Give each stratum its share of the trials again, after one has come or gone."""
        total = len(self._by_cost)
        number = max(1, min(self._rules.strata, int(total // (2 * self._rules.eta))))
        if number != len(self._strata):
            self._divide(number)
            return
        for i in range(1, number):
            edge = total * i // number
            while self._edges[i] < edge:
                self._move(self._edges[i], i, i - 1)
                self._edges[i] += 1
            while self._edges[i] > edge:
                self._edges[i] -= 1
                self._move(self._edges[i], i - 1, i)

    def _move(self, place: int, source: int, target: int) -> None:
        entry = self._entries[self._by_cost[place][1]]
        self._note(self._strata[source].remove(entry))
        self._note(self._strata[target].add(entry))

    def _divide(self, number: int) -> None:
        """Make another number of strata: that happens once for each, while there are few trials."""
        for group in self._strata:
            self._note([(trial, -1) for trial in group.chosen()])
        total = len(self._by_cost)
        self._edges = [total * i // number for i in range(number + 1)]
        self._strata = [_Group(self._rules.eta) for _ in range(number)]
        for i, group in enumerate(self._strata):
            for _, trial in self._by_cost[self._edges[i] : self._edges[i + 1]]:
                self._note(group.add(self._entries[trial]))

    def _note(self, changes: list[tuple[int, int]]) -> None:
        """Take down who has become one of the best of a group (+1), and who is so no more (-1)."""
        for trial, by in changes:
            self._chosen[trial] += by
            if not self._chosen[trial]:
                del self._chosen[trial]
                self._promotable.discard(trial)
            elif trial in self._waiting:
                self._promotable.add(trial)


class _Group:
    """Trials that compete: the best one in `eta` of them is chosen, the best alone where `eta` is infinite."""

    def __init__(self, eta: float) -> None:
        self._eta = eta
        self._best_first: list[tuple[float, float, int]] = []

    @property
    def n(self) -> int:
        return len(self._best_first)

    @property
    def n_chosen(self) -> int:
        return math.ceil(self.n / self._eta) if math.isfinite(self._eta) else min(1, self.n)

    @property
    def cut_loss(self) -> float:
        """Return the loss of the last one that is chosen."""
        return self._best_first[self.n_chosen - 1][0]

    def chosen(self) -> list[int]:
        return [trial for _, _, trial in self._best_first[: self.n_chosen]]

    def place(self, entry: RungEntry) -> int:
        """Return the place of a trial, from the best, 1."""
        return bisect_left(self._best_first, _key(entry)) + 1

    def add(self, entry: RungEntry) -> list[tuple[int, int]]:
        """Take in a trial; return who is chosen from now on (+1), and who no more (-1)."""
        before, key = self.n_chosen, _key(entry)
        place = bisect_left(self._best_first, key)
        self._best_first.insert(place, key)
        after = self.n_chosen
        if place < after:
            pushed_out = [(self._best_first[before][2], -1)] if after == before else []
            return [(entry.trial, 1), *pushed_out]
        return [(self._best_first[before][2], 1)] if after > before else []

    def remove(self, entry: RungEntry) -> list[tuple[int, int]]:
        """Let go of a trial; return who is chosen from now on (+1), and who no more (-1)."""
        before, place = self.n_chosen, bisect_left(self._best_first, _key(entry))
        del self._best_first[place]
        after = self.n_chosen
        if place < before:
            moved_up = [(self._best_first[after - 1][2], 1)] if after == before else []
            return [(entry.trial, -1), *moved_up]
        return [(self._best_first[after][2], -1)] if after < before else []


def _key(entry: RungEntry) -> tuple[float, float, int]:
    """Return what sorts trials from the best."""
    return entry.loss, entry.tie, entry.trial
