"""Proposes designs with Optuna's samplers.

The sampler has a study of its own, in memory: a proposal that the budget refuses never reaches the record,
and the record gets each accepted one in a single append. After a resume the memory is filled from the record.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from autopeft.spec.model import ModelSummary
from autopeft.spec.objective import Objective
from autopeft.spec.space import Draw, SearchSpace
from autopeft.study.front import non_dominated
from autopeft.study.optuna_log import quiet_optuna

T = TypeVar("T")

N_STARTUP_TRIALS = 10
"""Proposals drawn at random before TPE models anything; Optuna's own default."""
MAX_HISTORY = 1000
"""Trials that TPE looks at for each parameter of a proposal: it takes time in proportion. Then half of them go."""
BEST_SHARE = 0.25
"""Share of the trials that stay that are the best of all, by dominance; the others are a fair sample of the rest."""


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A design that a sampler proposes, with the parameters that made it.

    Attributes:
        ticket: What `Sampler.tell` knows the proposal by.
    """

    ticket: int
    draw: Draw
    params: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]


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


class Sampler:
    """Asks an Optuna sampler for designs of a space.

    TPE is given at most `MAX_HISTORY` trials: the best, and a fair sample of the others and of those that run.

    Args:
        name: `tpe` (also `auto`), `nsga2` or `random`.
        seed: Two samplers with equal seeds and histories propose the same.
    """

    def __init__(
        self, name: str, *, space: SearchSpace, model: ModelSummary, objectives: Sequence[Objective], seed: int
    ) -> None:
        self._space = space
        self._model = model
        self._directions = [objective.direction for objective in objectives]
        self._is_bounded = name in ("auto", "tpe")
        self._tickets = itertools.count()
        self._open: dict[int, optuna.Trial | _Open] = {}
        self._n_known = 0
        with quiet_optuna():
            self._sampler = _make_sampler(name, seed)
            # Another seed: with the same one it would repeat the draws that every sampler starts with.
            self._random = _make_sampler("random", seed + 1)
            self._study = optuna.create_study(directions=self._directions)

    def propose(self, *, at_random: bool = False) -> Proposal:
        """Draw one design; it counts as running until it is told.

        Args:
            at_random: Draw without regard to what is known, for when a sampler insists on what is refused.
        """
        if self._is_bounded and self._n_known >= MAX_HISTORY:
            self._forget()
        self._study.sampler = self._random if at_random else self._sampler
        trial, ticket = self._study.ask(), next(self._tickets)
        self._open[ticket], self._n_known = trial, self._n_known + 1
        draw = self._space.draw(_TrialChooser(trial), self._model)
        return Proposal(ticket=ticket, draw=draw, params=dict(trial.params), distributions=dict(trial.distributions))

    def tell(self, ticket: int, state: TrialState, values: Sequence[float] | None = None) -> None:
        """Say how a proposal ended: COMPLETE with values, PRUNED to be learned from as bad, FAIL to be ignored."""
        trial = self._open.pop(ticket)
        if isinstance(trial, optuna.Trial):
            self._study.tell(trial, state=state, values=values)
        elif trial.number is not None:
            self._study.tell(trial.number, state=state, values=values)
        elif state is not TrialState.FAIL:
            self.remember(trial.params, trial.distributions, state, values=values)

    def refuse(self, proposal: Proposal, excess: Mapping[str, float], *, learn: bool) -> None:
        """Say that a proposal breaks a limit; only where `learn` is set does the sampler see it."""
        trial = self._open[proposal.ticket]
        if learn and isinstance(trial, optuna.Trial):  # it is: nothing was proposed since
            for name, value in excess.items():
                trial.set_constraint(name, value)
        self.tell(proposal.ticket, TrialState.PRUNED if learn else TrialState.FAIL)

    def remember(
        self,
        params: Mapping[str, Any],
        distributions: Mapping[str, BaseDistribution],
        state: TrialState,
        *,
        values: Sequence[float] | None = None,
        constraints: Mapping[str, float] | None = None,
    ) -> None:
        """Add a finished trial that this sampler did not propose: of an earlier run, or a baseline."""
        self._n_known += 1
        self._study.add_trial(
            create_trial(
                state=state,
                params=dict(params),
                distributions=dict(distributions),
                values=values,
                constraints=dict(constraints or {}),
            )
        )

    def learn(self, trials: Iterable[FrozenTrial]) -> None:
        """Add what the record holds and this sampler did not propose: of an earlier run, or of another driver."""
        for trial in trials:
            self.remember(
                trial.params, trial.distributions, trial.state, values=trial.values, constraints=trial.constraints
            )

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


def _make_sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    match name:
        case "auto" | "tpe":
            return optuna.samplers.TPESampler(n_startup_trials=N_STARTUP_TRIALS, seed=seed, constant_liar=True)
        case "nsga2":
            return optuna.samplers.NSGAIISampler(seed=seed)
        case "random":
            return optuna.samplers.RandomSampler(seed=seed)
    raise ValueError(f"sampler must be one of auto, tpe, nsga2, random, but got {name!r}")
