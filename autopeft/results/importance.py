"""What mattered: how much of each objective's variation each choice of a design explains.

A parameter of a block exists only in designs that have the block, and importances that take only the parameters
that every trial has (Optuna's do) never see it. Here every trial is a row of one table, an absent parameter has a
value of its own beside the switch that says so, and is shuffled only among the trials that have it.

Not known here: what the search space would have allowed but no trial tried.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite, log10

import numpy as np
from numpy.typing import NDArray

from autopeft.results.design_table import Array, Parameter, tabulate
from autopeft.spec.objective import Objective
from autopeft.spec.state import StudyState
from autopeft.spec.trial import Outcome, TrialRecord

MIN_TRIALS = 20
"""Fewer trials than this say nothing: a fifth of them is held out at a time."""
MIN_R2 = 0.05
"""A forest that explains less than this of held-out trials has found nothing: noise alone reaches about as much."""
MAX_TRIALS = 600
"""Trials beyond this many, the oldest, are left out, so that a report of thousands is made within seconds."""
N_FOLDS = 5
N_TREES = 50
N_SHUFFLES = 8


@dataclass(frozen=True, kw_only=True)
class Importance:
    """What one choice explains.

    Attributes:
        parameter: Such as `lora.rank`, `lora.layers`, `lora.use`, `lora.learning_rate` or `quantization`.
        value: The share of the variance between trials that goes through the choice: half of the R² that
            predictions for held-out trials lose when it is shuffled (a difference of two independent draws has twice
            the variance of one); 0 or below where it tells nothing. What choices do together counts for each of them.
        standard_error: Of `value`, over the shuffles.
        n_trials: Trials that have the parameter.
    """

    parameter: str
    value: float
    standard_error: float
    n_trials: int


@dataclass(frozen=True, kw_only=True)
class Importances:
    """What mattered for one objective.

    Attributes:
        r2: Of the forest's predictions for trials that it was not fitted on; NaN where there are too few.
        n_trials: Trials that were predicted.
        parameters: Most important first; empty where `reason` says why nothing can be told.
    """

    objective: Objective
    r2: float
    n_trials: int
    parameters: tuple[Importance, ...] = ()
    reason: str = ""


def importances(state: StudyState, objective: Objective, *, seed: int = 0) -> Importances:
    """Return how much each choice explains of an objective, over the study's trials.

    A random forest is fitted on four fifths of the trials and predicts the rest, in turn. A choice's importance is
    half of the R² that is lost when it is shuffled in the rows that are predicted.

    Quality is explained for trials that trained in full; their scores at rungs, and those of stopped trials, help
    the fit as further rows with the share of training as a feature (all rows of a trial are held out together), and
    are not predicted. Costs are known for every proposal in the record and are explained on a log scale, without
    learning rates, which they do not depend on.

    Omits: choices that always vary together (layers that one block takes over from another) share their
    importance as the trees happen to split it. The trials are those that the sampler chose, not a random sample.

    Source: forest and permutation importance: Breiman 2001, "Random Forests", sections 2 and 10; half of the loss as a
        share of variance: Gregorutti et al. 2017, "Correlation and variable importance in random forests". The
        handling of absent parameters is ours.
    """
    rows = _quality_rows(state) if objective.kind == "quality" else _cost_rows(state, objective)
    judged = np.array([row.judged for row in rows], dtype=bool)
    n_judged = int(judged.sum())
    what = "trained in full" if objective.kind == "quality" else "differ in design"
    if n_judged < MIN_TRIALS:
        reason = f"too few trials to tell: {n_judged} {what}, and it takes {MIN_TRIALS}"
        return Importances(objective=objective, r2=float("nan"), n_trials=n_judged, reason=reason)
    targets = np.array([row.target for row in rows])
    if np.ptp(targets[judged]) == 0:
        reason = "every trial has the same value"
        return Importances(objective=objective, r2=float("nan"), n_trials=n_judged, reason=reason)
    table, parameters = tabulate(
        [row.trial for row in rows],
        [row.share for row in rows],
        n_layers=state.model.n_layers,
        learning_rates=objective.kind == "quality",
    )
    return _explain(objective, table, parameters, targets, judged, rows, seed)


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A score or a cost of a trial; `share` of the full training, and whether it is predicted or only helps."""

    trial: TrialRecord
    target: float
    share: float = 1.0
    judged: bool = True


def _quality_rows(state: StudyState) -> list[_Row]:
    # A perplexity is the exponential of a loss: its logarithm keeps one diverged trial from being all the variance.
    scale: Callable[[float], float] = log10 if state.metric == "perplexity" else float
    rows = []
    for trial in [t for t in state.chains if not t.is_reference][-MAX_TRIALS:]:
        scores = [(rung.examples, rung.scores.get(state.metric, float("nan"))) for rung in trial.rungs]
        rows += [
            _Row(trial=trial, target=scale(score), share=examples / state.n_full_examples, judged=False)
            for examples, score in scores
            if isfinite(score)
        ]
        if trial.outcome is Outcome.COMPLETE and isfinite(trial.value(state.metric)):
            rows.append(_Row(trial=trial, target=scale(trial.value(state.metric))))
    return rows


def _cost_rows(state: StudyState, objective: Objective) -> list[_Row]:
    trials = {trial.design.key: trial for trial in state.chains if not trial.is_reference}
    return [
        _Row(trial=trial, target=log10(max(trial.value(objective.name), 1.0)))
        for trial in list(trials.values())[-MAX_TRIALS:]
    ]


def _explain(
    objective: Objective,
    table: Array,
    parameters: Sequence[Parameter],
    targets: Array,
    judged: NDArray[np.bool_],
    rows: Sequence[_Row],
    seed: int,
) -> Importances:
    """Predict held-out trials, then again with each choice shuffled."""
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.model_selection import GroupKFold

    rng = np.random.default_rng(seed)
    groups = [row.trial.number for row in rows]
    plain = np.full(len(rows), np.nan)
    shuffled = np.full((len(parameters), N_SHUFFLES, len(rows)), np.nan)
    for train, test in GroupKFold(N_FOLDS, shuffle=True, random_state=seed).split(table, groups=groups):
        held_out = test[judged[test]]
        if not len(held_out):
            continue
        forest = RandomForestRegressor(N_TREES, min_samples_leaf=2, random_state=seed).fit(table[train], targets[train])
        plain[held_out] = forest.predict(table[held_out])
        versions = [_shuffle(table, held_out, parameter, rng) for parameter in parameters for _ in range(N_SHUFFLES)]
        if versions:
            predicted = forest.predict(np.concatenate(versions))
            shuffled[:, :, held_out] = predicted.reshape(len(parameters), N_SHUFFLES, len(held_out))
    actual = targets[judged]
    variance = float(np.mean((actual - actual.mean()) ** 2))
    error = np.mean((plain[judged] - actual) ** 2)
    r2 = float(1 - error / variance)
    n_trials = int(judged.sum())
    if r2 < MIN_R2:
        reason = (
            f"too few trials to tell: choices hardly predict held-out trials better than their mean does (R² {r2:.2f})"
        )
        return Importances(objective=objective, r2=r2, n_trials=n_trials, reason=reason)
    losses = (np.mean((shuffled[:, :, judged] - actual) ** 2, axis=2) - error) / (2 * variance)
    found = [
        Importance(
            parameter=parameter.name,
            value=float(loss.mean()),
            standard_error=float(loss.std(ddof=1) / np.sqrt(N_SHUFFLES)),
            n_trials=int((parameter.present & judged).sum()),
        )
        for parameter, loss in zip(parameters, losses, strict=True)
    ]
    ordered = sorted(found, key=lambda importance: -importance.value)
    return Importances(objective=objective, r2=r2, n_trials=n_trials, parameters=tuple(ordered))


def _shuffle(table: Array, rows: NDArray[np.int64], parameter: Parameter, rng: np.random.Generator) -> Array:
    """Return rows with one choice drawn anew from the trials that have it.

    A block's switch is drawn from all trials: where that changes a row, it takes the whole block from a trial
    that has it, or loses the whole block, so that no row has settings of a block that is not there.
    """
    changed = table[rows].copy()
    columns = np.array(parameter.columns)
    donors, others = np.flatnonzero(parameter.present), np.flatnonzero(~parameter.present)
    has = parameter.present[rows]
    if not parameter.block:
        replaced, sources = np.flatnonzero(has), rng.choice(donors, size=int(has.sum()))
    else:
        drawn = parameter.present[rng.integers(len(table), size=len(rows))]
        replaced = np.flatnonzero(has != drawn)
        sources = np.where(has[replaced], others[0], rng.choice(donors, size=len(replaced)))
    changed[np.ix_(replaced, columns)] = table[np.ix_(sources, columns)]
    return changed
