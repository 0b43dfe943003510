"""Why a study did what it did: every decision derived again from its record, and held against what the record says.

A search with several workers cannot be repeated by its seed, since its decisions depend on which result came first.
That order is in the record: each start, rung and end has its place in it, so that what was known at any moment, and
with it each decision of the rules, can be derived long after.

The front follows from the trials; `front.json`, where the study has one, is held against it.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isclose
from typing import Any, Literal

from autopeft.searching.rung_audit import RungAudit, place_words
from autopeft.searching.trials import MAX_RETRIES
from autopeft.spec.cost import OVER_BUDGET, excess, format_cost
from autopeft.spec.objective import OBJECTIVES, Objective
from autopeft.spec.state import StudyState
from autopeft.spec.trial import Outcome, TrialRecord, Verdict
from autopeft.study.front import eligible, losses, pareto_front
from autopeft.study.front_file import WrittenFront, read_front
from autopeft.study.hypervolume import hypervolume_history

StepKind = Literal["budget", "start", "rung", "retry", "end", "front"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One decision about a trial.

    Attributes:
        says: What was decided and why, in words.
        agrees: Whether the record says the same as the rules; None where the record does not hold enough to tell.
        event: Its place in the order of the study's events, where it has one.
        values: What the rules were applied to, JSON-ready.
    """

    kind: StepKind
    says: str
    agrees: bool | None = True
    event: int | None = None
    values: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class TrialReplay:
    """Every decision about one trial, in order."""

    number: int
    design: str
    outcome: Outcome
    steps: tuple[Step, ...]

    @property
    def agrees(self) -> bool:
        """Return whether no decision differs from what the rules say."""
        return all(step.agrees is not False for step in self.steps)


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Every decision of a study.

    Attributes:
        front: Numbers of the trials on the final front, cheapest first.
        hypervolume: Share of the study's box that the front dominates; None where the study file has no box.
        n_refused: Proposals that were never trained, by reason.
    """

    study: str
    metric: str
    trials: tuple[TrialReplay, ...]
    front: tuple[int, ...]
    hypervolume: float | None
    n_refused: Mapping[str, int]

    @property
    def agrees(self) -> bool:
        """Return whether the record holds no decision that differs from what the rules say."""
        return all(trial.agrees for trial in self.trials)

    def to_dict(self) -> dict[str, Any]:
        """Return the replay as JSON-ready values: its attributes, with `agrees` for the study and each trial."""
        trials = [{**asdict(trial), "agrees": trial.agrees} for trial in self.trials]
        return {**asdict(self), "agrees": self.agrees, "trials": trials}


def replay(state: StudyState) -> Replay:
    """Derive every decision of a study again from its record.

    Raises:
        ResultError: Its `front.json` cannot be read.
    """
    verdicts = RungAudit(state)
    front = pareto_front(state.trials, state.objectives)
    written = read_front(state, is_shared=verdicts.is_shared)
    history = hypervolume_history(state)
    successors = Counter(trial.continues for trial in state.trials if trial.continues is not None)
    trials = tuple(
        TrialReplay(
            number=trial.number,
            design=trial.describe(),
            outcome=trial.outcome,
            steps=(
                _budget(trial, state),
                *_start(trial, state, verdicts, successors),
                *_rungs(trial, state, verdicts),
                *_retries(trial),
                *_end(trial, state),
                *_front(trial, state, front, written),
            ),
        )
        for trial in state.trials
    )
    return Replay(
        study=state.spec.study_name,
        metric=state.metric,
        trials=trials,
        front=tuple(trial.number for trial in front),
        hypervolume=history[-1].value if history else None,
        n_refused=dict(state.n_refused),
    )


# Before training -----------------------------------------------------------------------------------------------


def _budget(trial: TrialRecord, state: StudyState) -> Step:
    """Return whether a trial was within the budget, by its recorded estimate."""
    limits, estimate, refused = state.limits, trial.estimate, trial.outcome is Outcome.INFEASIBLE
    derived = {} if trial.baseline == "full" else excess(limits, estimate)
    costs = {name: {"cost": estimate.cost(name), "limit": limit} for name, limit in limits.items()}
    values = {"costs": costs, "excess": derived, "recorded": dict(trial.excess)}
    agrees = trial.excess.keys() == derived.keys() and all(
        isclose(value, derived[name], rel_tol=1e-9, abs_tol=1e-12)
        # What trials measured may have raised the peak that a proposal was judged by, never lowered it.
        or (refused and name == "peak_memory" and value > derived[name])
        for name, value in trial.excess.items()
    )
    if refused:
        over = {name: value for name, value in trial.excess.items() if value > 0}
        # What a baseline is held against is the device's memory.
        agrees = agrees and (bool(over) or bool(trial.baseline))
        return Step(
            kind="budget", says=f"refused: {trial.reason or _costs(trial, limits, over)}", agrees=agrees, values=values
        )
    within = all(value <= 0 for value in derived.values())
    agrees = agrees and (within or bool(trial.baseline))
    if not derived:
        return Step(kind="budget", says="no limit applies", agrees=agrees, values=values)
    words = "within the budget" if within else OVER_BUDGET if agrees else "trained although it is not within the budget"
    return Step(kind="budget", says=f"{words}: {_costs(trial, limits, derived)}", agrees=agrees, values=values)


def _costs(trial: TrialRecord, limits: Mapping[str, int], names: Mapping[str, float]) -> str:
    return ", ".join(
        f"{OBJECTIVES[name].label} {format_cost(name, trial.estimate.cost(name))} of at most "
        f"{format_cost(name, limits[name])} ({trial.estimate.cost(name) / limits[name]:.0%})"
        for name in names
    )


def _start(trial: TrialRecord, state: StudyState, verdicts: RungAudit, successors: Counter[int]) -> Iterator[Step]:
    """Yield why a trial was started: proposed, a baseline, or the continuation of another."""
    if trial.outcome is Outcome.INFEASIBLE:
        return
    if trial.continues is None:
        says = f"started as the baseline {trial.baseline}" if trial.baseline else "proposed by the sampler"
        yield Step(kind="start", says=says, event=trial.first_event, values={})
        return
    earlier = state.trials[trial.continues] if 0 <= trial.continues < len(state.trials) else None
    values: dict[str, Any] = {"continues": trial.continues}
    if earlier is None or not _may_continue(trial, earlier) or successors[earlier.number] > 1:
        says = f"continues trial {trial.continues}, which is no unfinished trial of this design, or is continued twice"
        yield Step(kind="start", says=says, agrees=False, event=trial.first_event, values=values)
        return
    begins = "from its checkpoint" if trial.rungs[: len(earlier.rungs)] == earlier.rungs else "afresh"
    if earlier.outcome is Outcome.INTERRUPTED:
        says = f"continues trial {earlier.number}, which was interrupted ({earlier.reason}), {begins}"
        yield Step(kind="start", says=says, event=trial.first_event, values=values)
        return
    verdict = verdicts.of_continuation(trial)
    says = f"continues trial {earlier.number}, which was stopped, {begins}"
    if verdict is None:
        says += "; the record does not say what was known then"
        yield Step(kind="start", says=says, agrees=None, event=trial.first_event, values=values)
        return
    says += f": by then {place_words(verdict, state.quality)}"
    values = {**values, "verdict": asdict(verdict)}
    agrees = verdict.goes_on or (None if verdicts.is_shared else False)
    yield Step(kind="start", says=says, agrees=agrees, event=trial.first_event, values=values)


def _may_continue(trial: TrialRecord, earlier: TrialRecord) -> bool:
    same = (trial.design, dict(trial.learning_rates)) == (earlier.design, dict(earlier.learning_rates))
    return same and earlier.number < trial.number and earlier.outcome in (Outcome.STOPPED, Outcome.INTERRUPTED)


# While training ------------------------------------------------------------------------------------------------


def _rungs(trial: TrialRecord, state: StudyState, verdicts: RungAudit) -> Iterator[Step]:
    """Yield what the rungs decided about a trial."""
    own = list(verdicts.own_scores(trial))
    for index, score in own:
        derived = verdicts.of_rung(trial, index)
        place = f"at {score.examples / state.n_full_examples:.0%}"
        values: dict[str, Any] = {"rung": index, "examples": score.examples, "scores": dict(score.scores)}
        if derived is None or score.verdict is None:
            says = f"{place}: the record does not say when it was scored, or what was decided"
            yield Step(kind="rung", says=says, agrees=None, event=score.event, values=values)
            continue
        values |= {"verdict": asdict(derived), "recorded": asdict(score.verdict)}
        agrees, complaint = _check_rung(trial, state, verdicts, index, derived, is_last=index == own[-1][0])
        name = state.quality.label
        says = f"{place}: {name} {score.scores[state.metric]:.4g} is {place_words(derived, state.quality)}{complaint}"
        yield Step(kind="rung", says=says, agrees=agrees, event=score.event, values=values)


def _check_rung(
    trial: TrialRecord, state: StudyState, verdicts: RungAudit, index: int, derived: Verdict, *, is_last: bool
) -> tuple[bool | None, str]:
    """Return whether the record agrees with a derived verdict, and what it says where it does not."""
    score, rules = trial.rungs[index], state.spec.halving
    assert score.verdict is not None
    assert rules is not None
    # A segment ends with a whole batch: at its rung or a little after.
    begin, *later = (round(fraction * state.n_full_examples) for fraction in (*rules.rungs[index:], 1.0))
    if not begin <= score.examples <= later[0]:
        return False, "; but that is no rung of this study"
    if score.verdict != derived:
        if verdicts.is_shared and score.verdict.n_known != derived.n_known:
            return None, "; the driver that decided did not know all of these scores"
        return False, f"; but the record says {place_words(score.verdict, state.quality)}"
    # A search that is killed right after a verdict leaves the trial interrupted, and goes on with it.
    if not derived.goes_on and (not is_last or trial.outcome not in (Outcome.STOPPED, Outcome.INTERRUPTED)):
        return False, "; but it trained on"
    if derived.goes_on and is_last and trial.outcome is Outcome.STOPPED:
        return False, "; but it was stopped"
    return True, ""


# The end -------------------------------------------------------------------------------------------------------


def _retries(trial: TrialRecord) -> Iterator[Step]:
    if trial.n_retries:
        times = "once" if trial.n_retries == 1 else f"{trial.n_retries} times"
        says = f"run again {times} from its last checkpoint: its worker was lost"
        agrees = trial.n_retries <= MAX_RETRIES
        says += "" if agrees else f"; but {MAX_RETRIES} times are the most"
        yield Step(kind="retry", says=says, agrees=agrees, values={"n_retries": trial.n_retries})


def _end(trial: TrialRecord, state: StudyState) -> Iterator[Step]:
    """Yield how a trial ended, and whether its record bears that out."""
    if trial.outcome is Outcome.INFEASIBLE:
        return
    share = trial.examples / state.n_full_examples
    says = f"{trial.outcome.value.replace('_', ' ')} at {share:.0%}" + (f": {trial.reason}" if trial.reason else "")
    problem = ""
    if trial.outcome is Outcome.COMPLETE and trial.baseline != "base" and trial.examples < state.n_full_examples:
        problem = "; but it did not train in full"
    elif trial.outcome is Outcome.STOPPED and not trial.rungs:
        problem = "; but no rung compared it"
    elif list(trial.events) != sorted(trial.events) and trial.continues is None:
        problem = "; but its events are out of order"
    values = {"outcome": trial.outcome.value, "examples": trial.examples, "reason": trial.reason}
    yield Step(kind="end", says=says + problem, agrees=not problem, event=trial.last_event, values=values)


def _front(
    trial: TrialRecord, state: StudyState, front: Sequence[TrialRecord], written: WrittenFront | None
) -> Iterator[Step]:
    """Yield why a trial that trained in full is on the front, or not; of others, where the file says otherwise."""
    on, by = trial in front, None
    agrees, complaint = (True, "") if written is None else written.check(trial, state, on_front=on)
    if trial.outcome is not Outcome.COMPLETE and not complaint:
        return
    if on:
        says = "on the front: no design is as good in everything and better in something"
    elif trial.outcome is not Outcome.COMPLETE:
        says = "not on the front: it did not train in full"
    elif trial.is_reference:
        says = "not on the front: a reference, no design"
    elif not eligible([trial]):
        says = "not on the front: over the budget"
    else:
        own = losses(trial, state.objectives)
        better = next(t for t in front if all(a <= b for a, b in zip(losses(t, state.objectives), own, strict=True)))
        by = better.number
        pairs = ", ".join(f"{o.label} {_value(better, o)} against {_value(trial, o)}" for o in state.objectives)
        says = f"not on the front: trial {by} is as good or better in everything ({pairs})"
    yield Step(kind="front", says=says + complaint, agrees=agrees, values={"on_front": on, "dominated_by": by})


def _value(trial: TrialRecord, objective: Objective) -> str:
    value = trial.value(objective.name)
    return format_cost(objective.name, value) if objective.kind == "cost" else f"{value:.4g}"
