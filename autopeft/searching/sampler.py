"""Proposes designs with Optuna's samplers.

The sampler has a study of its own, in memory: a proposal that the budget refuses never reaches the record,
and the record gets each accepted one in a single append. After a resume the memory is filled from the record.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState, create_trial

from autopeft.spec.model import ModelSummary
from autopeft.spec.objective import Objective
from autopeft.spec.space import Draw, SearchSpace

N_STARTUP_TRIALS = 10
"""Proposals drawn at random before TPE models anything; Optuna's own default."""


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Keep Optuna's log lines and its notes on experimental parts, which we know of, out of ours."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)


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

    Args:
        name: `tpe` (also `auto`), `nsga2` or `random`.
        seed: Two samplers with equal seeds and histories propose the same.
    """

    def __init__(
        self, name: str, *, space: SearchSpace, model: ModelSummary, objectives: Sequence[Objective], seed: int
    ) -> None:
        self._space = space
        self._model = model
        self._open: dict[int, optuna.Trial] = {}
        with quiet_optuna():
            self._sampler = _make_sampler(name, seed)
            # Another seed: with the same one it would repeat the draws that every sampler starts with.
            self._random = _make_sampler("random", seed + 1)
            self._study = optuna.create_study(directions=[objective.direction for objective in objectives])

    def propose(self, *, at_random: bool = False) -> Proposal:
        """Draw one design; it counts as running until it is told.

        Args:
            at_random: Draw without regard to what is known, for when a sampler insists on what is refused.
        """
        self._study.sampler = self._random if at_random else self._sampler
        trial = self._study.ask()
        self._open[trial.number] = trial
        draw = self._space.draw(_TrialChooser(trial), self._model)
        return Proposal(
            ticket=trial.number, draw=draw, params=dict(trial.params), distributions=dict(trial.distributions)
        )

    def tell(self, ticket: int, state: TrialState, values: Sequence[float] | None = None) -> None:
        """Say how a proposal ended: COMPLETE with values, PRUNED to be learned from as bad, FAIL to be ignored."""
        self._study.tell(self._open.pop(ticket), state=state, values=values)

    def refuse(self, proposal: Proposal, excess: Mapping[str, float], *, learn: bool) -> None:
        """Say that a proposal breaks a limit; only where `learn` is set does the sampler see it."""
        if learn:
            for name, value in excess.items():
                self._open[proposal.ticket].set_constraint(name, value)
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
        self._study.add_trial(
            create_trial(
                state=state,
                params=dict(params),
                distributions=dict(distributions),
                values=values,
                constraints=dict(constraints or {}),
            )
        )


def _make_sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    match name:
        case "auto" | "tpe":
            return optuna.samplers.TPESampler(n_startup_trials=N_STARTUP_TRIALS, seed=seed, constant_liar=True)
        case "nsga2":
            return optuna.samplers.NSGAIISampler(seed=seed)
        case "random":
            return optuna.samplers.RandomSampler(seed=seed)
    raise ValueError(f"sampler must be one of auto, tpe, nsga2, random, but got {name!r}")
