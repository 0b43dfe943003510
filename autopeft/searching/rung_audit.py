"""What the rungs of a study decided, derived again from its record in the order in which scores came in."""

from collections.abc import Iterator

from autopeft.searching.rungs import Rung, RungEntry
from autopeft.spec.objective import Objective
from autopeft.spec.state import StudyState
from autopeft.spec.trial import RungScore, TrialRecord, Verdict


class RungAudit:
    """The verdict of each rung on each trial, by the rules that the search itself uses.

    Attributes:
        is_shared: Whether several drivers wrote the study: each decided by what it knew, which may have been less.
    """

    def __init__(self, state: StudyState) -> None:
        rules = state.spec.halving
        self._metric, self._cost = state.quality, state.cost
        self._trials = {trial.number: trial for trial in state.trials}
        self._rungs = [] if rules is None else [Rung(rules) for _ in rules.rungs]
        self._roots: dict[int, int] = {}
        for trial in state.trials:
            before = trial.number if trial.continues is None else trial.continues
            self._roots[trial.number] = self._roots.get(before, before)
        self._derived: dict[tuple[int, int], Verdict] = {}
        self._continuations: dict[int, Verdict] = {}
        self.is_shared = len({trial.driver for trial in state.trials}) > 1
        self._derive()

    def of_rung(self, trial: TrialRecord, rung: int) -> Verdict | None:
        """Return what a rung said when a trial had been scored there; None where its time is not known."""
        return self._derived.get((trial.number, rung))

    def of_continuation(self, trial: TrialRecord) -> Verdict | None:
        """Return what the rung of a stopped trial said when another continued it; None where that is not known."""
        return self._continuations.get(trial.number)

    def own_scores(self, trial: TrialRecord) -> Iterator[tuple[int, RungScore]]:
        """Yield the scores that a trial made itself, with their rungs; those that it took over are not its own."""
        if trial.baseline:
            return  # baselines train in full
        for index, score in enumerate(trial.rungs):
            if trial.continues is None or _order(score.event) > _order(trial.first_event):
                yield index, score

    def _derive(self) -> None:
        """Put the scores into the rungs in their order, and ask the rungs whenever the search asked them."""
        moments = [
            (_order(score.event), trial.number, index)
            for trial in self._trials.values()
            for index, score in self.own_scores(trial)
        ]
        moments += [(_order(t.first_event), t.number, -1) for t in self._trials.values() if t.continues is not None]
        for _, number, index in sorted(moments):
            if index < 0:
                self._continue(self._trials[number])
            elif index < len(self._rungs):
                self._put(self._trials[number], index)

    def _put(self, trial: TrialRecord, index: int) -> None:
        root, rung = self._roots[trial.number], self._rungs[index]
        rung.put(RungEntry.of(trial, trial.rungs[index], root=root, metric=self._metric, cost=self._cost))
        if trial.rungs[index].event is not None:
            self._derived[trial.number, index] = rung.verdict(root)

    def _continue(self, trial: TrialRecord) -> None:
        earlier = self._trials.get(-1 if trial.continues is None else trial.continues)
        if earlier is None or trial.first_event is None or not 0 < len(earlier.rungs) <= len(self._rungs):
            return
        root, rung = self._roots[trial.number], self._rungs[len(earlier.rungs) - 1]
        if rung.knows(root):
            self._continuations[trial.number] = rung.verdict(root)


def place_words(verdict: Verdict, metric: Objective) -> str:
    """Say how a trial stood among those that it was compared with, and what followed."""
    cut = -verdict.cut_loss if metric.direction == "maximize" else verdict.cut_loss
    where = f" in cost stratum {verdict.stratum + 1} of {verdict.n_strata}" if verdict.n_strata > 1 else ""
    best = f"the best {verdict.n_chosen} go on" if verdict.n_chosen > 1 else "the best one goes on"
    says = f"place {verdict.place} of {verdict.n_compared}{where}, where {best} ({metric.label} {cut:.4g}): "
    if not verdict.goes_on:
        return says + "stops"
    if verdict.place <= verdict.n_chosen:
        return says + "goes on"
    return says + "goes on as one of the best that start slowly, or as the best of its base"


def _order(event: int | None) -> int:
    """Return a place in the order of events; what has none, in older records, came before everything that has one."""
    return -1 if event is None else event
