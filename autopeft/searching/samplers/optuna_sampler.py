"""Proposes designs with Optuna's samplers.

The sampler has a study of its own, in memory: a proposal that the budget refuses never reaches the record,
and the record gets each accepted one in a single append. After a resume the memory is filled from the record.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from autopeft.errors import StudyError
from autopeft.searching.samplers.base import Observation, Proposal
from autopeft.spec.model import ModelSummary
from autopeft.spec.objective import OBJECTIVES, Objective
from autopeft.spec.space import SearchSpace
from autopeft.study.front import non_dominated
from autopeft.study.optuna_log import quiet_optuna

T = TypeVar("T")

N_STARTUP_TRIALS = 10
"""Proposals drawn at random before TPE models anything; Optuna's own default."""
MAX_HISTORY = 1000
"""Trials that TPE looks at for each parameter of a proposal: it takes time in proportion. Then half of them go."""
N_TRIED = 32
"""Random designs that tell whether a space has conditions."""
BEST_SHARE = 0.25
"""Share of the trials that stay that are the best of all, by dominance; the others are a fair sample of the rest."""
_STATES = {"complete": TrialState.COMPLETE, "worse": TrialState.PRUNED, "nothing": TrialState.FAIL}


class _TrialChooser:
    """Answers the choices of a space from an Optuna trial."""

    def __init__(self, trial: optuna.Trial) -> None:
        self._trial = trial

    def choice(self, name: str, options: Sequence[Any]) -> Any:
        return self._trial.suggest_categorical(name, options)

    def integer(self, name: str, low: int, high: int, *, log: bool) -> int:
        return self._trial.suggest_int(name, low, high, log=log)

    def real(self, name: str, low: float, high: float, *, log: bool) -> float:
        return self._trial.suggest_float(name, low, high, log=log)


class OptunaSampler:
    """Asks one of Optuna's samplers for designs of a space; see `autopeft.searching.samplers.base.Sampler`.

    TPE is given at most `MAX_HISTORY` trials: the best, and a fair sample of the others and of those that run.

    Args:
        make: Makes Optuna's sampler from a seed.
        is_bounded: Whether a proposal takes time in proportion to the trials that are known.
        space: What designs are drawn from.
        model: What they are attached to.
        objectives: Of the study, in the order of its values.
        seed: Two samplers with equal seeds and histories propose the same.
    """

    def __init__(
        self,
        make: Callable[[int], optuna.samplers.BaseSampler],
        *,
        is_bounded: bool = False,
        space: SearchSpace,
        model: ModelSummary,
        objectives: Sequence[Objective],
        seed: int,
    ) -> None:
        self._space = space
        self._model = model
        self._objectives = tuple(objectives)
        self._directions = [objective.direction for objective in objectives]
        self._is_bounded = is_bounded
        self._tickets = itertools.count()
        self._open: dict[int, optuna.Trial | _Open] = {}
        self._n_known = 0
        with quiet_optuna():
            self._sampler = make(seed)
            # Another seed: with the same one it would repeat the draws that every sampler starts with.
            self._random = optuna.samplers.RandomSampler(seed=seed + 1)
            self._study = optuna.create_study(directions=self._directions)

    def suggest(self, n: int = 1, *, at_random: bool = False) -> list[Proposal]:
        """Propose designs; see `Sampler`."""
        return [self._propose(at_random=at_random) for _ in range(n)]

    def update(self, observations: Iterable[Observation]) -> None:
        """Take in what became of proposals; see `Sampler`."""
        for observation in observations:
            if observation.ticket is not None:
                self._end(observation)
            elif observation.lesson != "nothing" and observation.params:
                self._add(observation)

    def _propose(self, *, at_random: bool) -> Proposal:
        if self._is_bounded and self._n_known >= MAX_HISTORY:
            self._forget()
        self._study.sampler = self._random if at_random else self._sampler
        trial, ticket = self._study.ask(), next(self._tickets)
        self._open[ticket], self._n_known = trial, self._n_known + 1
        draw = self._space.draw(_TrialChooser(trial), self._model)
        return Proposal(ticket=ticket, draw=draw, params=dict(trial.params), distributions=dict(trial.distributions))

    def _end(self, observation: Observation) -> None:
        """End a trial of the study in memory, or add one where that study was begun anew since it was proposed."""
        assert observation.ticket is not None
        trial = self._open.pop(observation.ticket)
        state, values = _STATES[observation.lesson], self._values(observation)
        if isinstance(trial, optuna.Trial):
            for name, value in observation.excess.items() if observation.lesson == "worse" else ():
                trial.set_constraint(name, value)
            self._study.tell(trial, state=state, values=values)
        elif trial.number is not None:
            self._study.tell(trial.number, state=state, values=values)
        elif state is not TrialState.FAIL:
            self._add(observation)

    def _add(self, observation: Observation) -> None:
        self._n_known += 1
        self._study.add_trial(
            create_trial(
                state=_STATES[observation.lesson],
                params=dict(observation.params),
                distributions=dict(observation.distributions),
                values=self._values(observation),
                constraints=dict(observation.excess),
            )
        )

    def _values(self, observation: Observation) -> list[float] | None:
        record = observation.record
        if observation.lesson != "complete" or record is None:
            return None
        return [float(record.value(objective.name)) for objective in self._objectives]

    def _forget(self) -> None:
        """Begin a new study in memory with half of `MAX_HISTORY`: of what has ended, and of what runs."""
        states = (TrialState.COMPLETE, TrialState.PRUNED)
        ended = self._study.get_trials(deepcopy=False, states=states)
        n_open = min(len(self._open), MAX_HISTORY // 8)
        kept = _representatives(ended, MAX_HISTORY // 2 - n_open, self._directions)
        seen = {ticket for ticket, _ in _spread(list(self._open.items()), n_open)}
        with quiet_optuna():
            self._study = optuna.create_study(directions=self._directions)
            self._study.add_trials(kept)
            number = itertools.count(len(kept))
            for ticket, trial in self._open.items():
                params, distributions = dict(trial.params), dict(trial.distributions)
                self._open[ticket] = _Open(params, distributions, next(number) if ticket in seen else None)
                if ticket in seen:
                    self._study.add_trial(
                        create_trial(state=TrialState.RUNNING, params=params, distributions=distributions)
                    )
        self._n_known = len(kept) + n_open


class _Open(NamedTuple):
    """A proposal that was made before the present study in memory began, with its number there, if it has one."""

    params: dict[str, Any]
    distributions: dict[str, BaseDistribution]
    number: int | None


def _representatives(trials: Sequence[FrozenTrial], n: int, directions: Sequence[str]) -> list[FrozenTrial]:
    """Return `n` trials in their order: the best by dominance, and an even selection of all others."""
    if len(trials) <= n:
        return list(trials)
    signs = [1.0 if direction == "minimize" else -1.0 for direction in directions]
    left = [t for t in trials if t.state is TrialState.COMPLETE and all(v <= 0 for v in t.constraints.values())]
    best: set[int] = set()
    while left and len(best) < BEST_SHARE * n:
        on_front = non_dominated([[s * v for s, v in zip(signs, t.values, strict=True)] for t in left])
        front = [t.number for t, kept in zip(left, on_front, strict=True) if kept]
        best.update(front[: n - len(best)])
        left = [t for t, kept in zip(left, on_front, strict=True) if not kept]
    others = {t.number for t in _spread([t for t in trials if t.number not in best], n - len(best))}
    return [t for t in trials if t.number in best or t.number in others]


def _spread(items: Sequence[T], n: int) -> list[T]:
    """Return `n` of the items, evenly spread."""
    return [items[i * len(items) // n] for i in range(n)] if n < len(items) else list(items)


def _tpe(seed: int, *, multivariate: bool) -> optuna.samplers.BaseSampler:
    return optuna.samplers.TPESampler(
        n_startup_trials=N_STARTUP_TRIALS, seed=seed, constant_liar=True, multivariate=multivariate
    )


def _nsga2(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.NSGAIISampler(seed=seed)


def _random(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.RandomSampler(seed=seed)


def _gp(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.GPSampler(seed=seed, n_startup_trials=N_STARTUP_TRIALS)


def gp(*, space: SearchSpace, model: ModelSummary, objectives: Sequence[Objective], seed: int) -> OptunaSampler:
    """Make the sampler `gp`: Gaussian processes, for spaces whose parameters are the same in every design.

    Raises:
        StudyError: The space has parameters that depend on others.
    """
    names = {frozenset(draw.params) for draw in _some_draws(space, model)}
    if len(names) > 1:
        some, other = sorted(sorted(each) for each in names)[:2]
        differs = sorted(set(some) ^ set(other))[0]
        raise StudyError(
            f"sampler gp needs a space whose designs all have the same parameters, but {differs} is not in every "
            f"design of {space.name}; take sampler tpe, or a space without conditions"
        )
    return OptunaSampler(_gp, space=space, model=model, objectives=objectives, seed=seed)


def _some_draws(space: SearchSpace, model: ModelSummary) -> list[Proposal]:
    objective = OBJECTIVES["trainable_params"]
    sampler = OptunaSampler(_random, space=space, model=model, objectives=(objective,), seed=0)
    return sampler.suggest(N_TRIED)


tpe = partial(OptunaSampler, partial(_tpe, multivariate=False), is_bounded=True)
"""Make the sampler `tpe`."""
tpe_multivariate = partial(OptunaSampler, partial(_tpe, multivariate=True), is_bounded=True)
"""Make the sampler `tpe-multivariate`."""
nsga2 = partial(OptunaSampler, _nsga2)
"""Make the sampler `nsga2`."""
random = partial(OptunaSampler, _random)
"""Make the sampler `random`."""
