"""Dominance: which points nothing else beats in every objective."""

from collections.abc import Sequence

from autopeft.spec.objective import Objective
from autopeft.spec.trial import Outcome, TrialRecord


def non_dominated(losses: Sequence[Sequence[float]]) -> list[bool]:
    """Return, for each point, whether no other point is at least as good everywhere and better somewhere.

    Args:
        losses: Points of equal length; smaller is better in every coordinate.

    Points that are equal do not dominate each other.
    """
    import moocore

    return [bool(kept) for kept in moocore.is_nondominated(losses, keep_weakly=True)] if losses else []


def _dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def losses(record: TrialRecord, objectives: Sequence[Objective]) -> tuple[float, ...]:
    """Return a trial's objective values with the signs that make smaller better."""
    return tuple(objective.loss(record.value(objective.name)) for objective in objectives)


def eligible(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the feasible trials that trained in full: those that may stand on a front.

    References are no designs: the base model as it is, and the whole model fine-tuned. A baseline that is over the
    budget is a reference, too.
    """
    return [
        record
        for record in records
        if record.outcome is Outcome.COMPLETE and not record.is_reference and not record.is_over_budget
    ]


def pareto_front(records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> tuple[TrialRecord, ...]:
    """Return the non-dominated feasible trials that trained in full, cheapest first.

    Of trials with equal values in every objective the earliest stands for all.
    """
    complete = eligible(records)
    points = [losses(record, objectives) for record in complete]
    front: dict[tuple[float, ...], TrialRecord] = {}
    for record, point, kept in zip(complete, points, non_dominated(points), strict=True):
        if kept:
            front.setdefault(point, record)
    costs = [i for i, objective in enumerate(objectives) if objective.kind == "cost"]
    ordered = sorted(front.items(), key=lambda item: (*(item[0][i] for i in costs), item[0]))
    return tuple(record for _, record in ordered)


class Front:
    """The front of trials that come one by one.

    A trial is held against the front alone, not against all that came before it.
    """

    def __init__(self, objectives: Sequence[Objective]) -> None:
        self._objectives = objectives
        self._trials: dict[tuple[float, ...], int] = {}

    def put(self, record: TrialRecord) -> None:
        """Take in a trial; only a feasible one that trained in full can be on the front."""
        if not eligible([record]):
            return
        point = losses(record, self._objectives)
        if any(_dominates(other, point) for other in self._trials):
            return
        self._trials = {other: trial for other, trial in self._trials.items() if not _dominates(point, other)}
        self._trials[point] = min(record.number, self._trials.get(point, record.number))

    def numbers(self) -> set[int]:
        """Return the numbers of the trials on the front; of equal ones the earliest."""
        return set(self._trials.values())


def compared(records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> list[TrialRecord]:
    """Return what the final check scores: the front, and the finished baselines that it is compared with."""
    front = pareto_front(records, objectives)
    baselines = [r for r in records if r.baseline and r.outcome is Outcome.COMPLETE and r not in front]
    return [*front, *baselines]
