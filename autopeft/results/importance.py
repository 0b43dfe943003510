"""What mattered: how much of each objective's variation each choice of a design explains.

A parameter of a block exists only in designs that have the block, and importances that take only the parameters
that every trial has (Optuna's do) never see it. Here every trial is a row of one table, an absent parameter has a
value of its own beside the switch that says so, and is shuffled only among the trials that have it.

The parameters are derived from the designs themselves: each field of each block kind, the layers, the learning
rates, and the quantization. Not known here: what the search space would have allowed but no trial tried.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite, log10
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autopeft.spec.block import Block, block_class
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

_ABSENT = -1e3
"""Stands for a parameter that a trial does not have: below every real value. How far below is nothing to a tree."""

Array = NDArray[np.float64]


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


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One choice: the columns of the table that hold it, and which rows have it.

    Attributes:
        block: The block kind that a switch `kind.use` switches; its columns are then all of the block's.
    """

    name: str
    columns: tuple[int, ...]
    present: NDArray[np.bool_]
    block: str = ""


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
    table, parameters = _tabulate(state, rows, learning_rates=objective.kind == "quality")
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
    for trial in [t for t in state.chains if t.baseline != "base"][-MAX_TRIALS:]:
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
    trials = {trial.design.key: trial for trial in state.chains if trial.baseline != "base"}
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


def _tabulate(state: StudyState, rows: Sequence[_Row], *, learning_rates: bool) -> tuple[Array, list[Parameter]]:
    """Return one row of numbers for each score, and the choices that its columns hold."""
    trials = [row.trial for row in rows]
    columns: list[Array] = [np.array([row.share for row in rows])]
    parameters: list[Parameter] = []

    def add(name: str, values: Sequence[Sequence[float] | None]) -> None:
        """Add a choice of one or more columns, unless every trial that has it has the same."""
        present = np.array([value is not None for value in values])
        width = max((len(value) for value in values if value is not None), default=0)
        block = np.array([value if value is not None else [_ABSENT] * width for value in values])
        if width and len(np.unique(block[present], axis=0)) > 1:
            places = tuple(range(len(columns), len(columns) + width))
            columns.extend(block.T)
            parameters.append(Parameter(name=name, columns=places, present=present))

    add("quantization", _codes([trial.design.quantization for trial in trials]))
    if learning_rates:
        add("head.learning_rate", [_rate(trial, "head") for trial in trials])
    for kind in sorted({kind for trial in trials for kind in trial.design.kinds}):
        first = len(columns)
        present = np.array([kind in trial.design.kinds for trial in trials])
        if not present.all():
            columns.append(present.astype(np.float64))
        for name, values in _block_choices(state, kind, trials):
            add(f"{kind}.{name}", values)
        if learning_rates:
            rates = [_rate(trial, kind) if kind in trial.design.kinds else None for trial in trials]
            add(f"{kind}.learning_rate", rates)
        if not present.all():
            places = tuple(range(first, len(columns)))
            parameters.append(Parameter(name=f"{kind}.use", columns=places, present=present, block=kind))
    return np.column_stack(columns), parameters


def _rate(trial: TrialRecord, kind: str) -> list[float] | None:
    rate = trial.learning_rates.get(kind)
    return None if not rate else [log10(rate)]


def _block_choices(
    state: StudyState, kind: str, trials: Sequence[TrialRecord]
) -> Iterator[tuple[str, list[Sequence[float] | None]]]:
    """Yield each field of a block kind as numbers by trial, None where the trial has no such block.

    A field that says no more than the size does (alpha, where a space sets it to twice the rank) is left out.
    """
    blocks = [[block for block in trial.design.blocks if block.kind == kind] for trial in trials]
    fields, size_field = block_class(kind).model_fields, block_class(kind).size_field
    shared = {name: [_same([getattr(block, name) for block in own]) for own in blocks] for name in fields}
    for name, values in shared.items():
        repeats_size = size_field is not None and name != size_field and _one_to_one(shared[size_field], values)
        if name != "layers" and not repeats_size:
            yield name, _numbers(values)
    n_layers = state.model.n_layers
    yield "layers", [_layer_switches(own, n_layers) if own else None for own in blocks]


def _layer_switches(blocks: Sequence[Block], n_layers: int) -> list[float]:
    """Return the number of layers that have a block, and for each layer whether it has: one choice, many columns."""
    used = set[int]()
    for block in blocks:
        used.update(range(n_layers) if block.layers == "all" else block.layers)
    return [float(len(used)), *(float(layer in used) for layer in range(n_layers))]


def _same(values: Sequence[Any]) -> Any:
    """Return what several blocks of one kind share: the value, the mean of numbers, or the tuple of what differs."""
    distinct = list(dict.fromkeys(values))
    if not distinct:
        return None
    if len(distinct) > 1:
        numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in distinct)
        return sum(values) / len(values) if numeric else tuple(distinct)
    return distinct[0]


def _one_to_one(a: Sequence[Any], b: Sequence[Any]) -> bool:
    pairs = {pair for pair in zip(a, b, strict=True) if pair[0] is not None}
    return len(pairs) == len({x for x, _ in pairs}) == len({y for _, y in pairs})


def _numbers(values: Sequence[Any]) -> list[Sequence[float] | None]:
    """Return numbers as they are and everything else as codes; trees need the order alone."""
    if all(value is None or isinstance(value, int | float) for value in values):
        return [None if value is None else [float(value)] for value in values]
    return _codes(values)


def _codes(values: Sequence[Any]) -> list[Sequence[float] | None]:
    """Return categories as one column for each."""
    known = sorted({value for value in values if value is not None}, key=str)
    return [None if value is None else [float(value == other) for other in known] for value in values]
