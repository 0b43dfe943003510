"""The hypervolume against brute force, and the box that it is a share of."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import autopeft
from autopeft.spec.objective import OBJECTIVES
from autopeft.spec.trial import Outcome, TrialRecord
from autopeft.study.hypervolume import FACT, Box, hypervolume, hypervolume_history, make_box
from tests.conftest import make_summary
from tests.results.generated import HEAD, Builder, lora
from tests.tasks.generated import reviews, save_tiny_bert

ACCURACY, PARAMS, MEMORY = (OBJECTIVES[name] for name in ("accuracy", "trainable_params", "peak_memory"))
LIMIT = 100_000_000
BOX = Box(
    ideal={"accuracy": 1.0, "trainable_params": 1000.0, "peak_memory": 2.0**20},
    reference={"accuracy": 0.0, "trainable_params": 1_000_000.0, "peak_memory": 2.0**30},
)
N_CELLS = 40


@pytest.fixture
def trial(tmp_path) -> TrialRecord:
    build = Builder(folder=tmp_path)
    return replace(build.add(lora(8), params=30_000, skill=0.8), excess={}, scores={"accuracy": 0.8})


def at(trial: TrialRecord, accuracy: float, params: int, memory: int = 2**20) -> TrialRecord:
    estimate = replace(trial.estimate, trainable_params=params, peak_memory=memory)
    return replace(trial, scores={"accuracy": accuracy}, estimate=estimate)


def on_grid(trials: list[TrialRecord], n_objectives: int) -> float:
    """Count the cells of a grid over the box that some trial is at least as good as; values lie on the grid."""
    ends = [(0.0, 1.0), (3.0, 6.0), (20.0, 30.0)][:n_objectives]
    points = []
    for t in trials:
        values = (1 - t.scores["accuracy"], math.log10(t.estimate.trainable_params), math.log2(t.estimate.peak_memory))
        points.append([(v - low) / (high - low) for v, (low, high) in zip(values, ends, strict=False)])
    axis = (np.arange(N_CELLS) + 0.5) / N_CELLS
    cells = np.stack(np.meshgrid(*[axis] * n_objectives, indexing="ij"), axis=-1)
    covered = np.zeros(cells.shape[:-1], dtype=bool)
    for point in points:
        covered |= (cells >= np.asarray(point)).all(axis=-1)
    return float(covered.mean())


grid_points = st.lists(st.tuples(*[st.integers(0, N_CELLS)] * 3), max_size=12)


@given(grid_points, st.sampled_from([2, 3]))
def test_it_is_the_share_of_a_fine_grid_that_is_dominated(tmp_path_factory, points, n_objectives: int) -> None:
    one = replace(Builder(folder=tmp_path_factory.getbasetemp() / "grid").add(lora(8), params=1), excess={})
    trials = [
        at(one, 1 - a / N_CELLS, params=10 ** (3 + 3 * p / N_CELLS), memory=2 ** (20 + 10 * m / N_CELLS))
        for a, p, m in points
    ]
    objectives = [ACCURACY, PARAMS, MEMORY][:n_objectives]
    # A cell's centre is half a cell from the grid's lines, which the trials are on: the count is exact.
    assert hypervolume(trials, objectives, BOX) == pytest.approx(on_grid(trials, n_objectives), abs=1e-9)


def test_costs_count_by_their_logarithm_and_quality_as_it_is(trial: TrialRecord) -> None:
    objectives = [ACCURACY, PARAMS]
    assert hypervolume([at(trial, 1.0, 1000)], objectives, BOX) == pytest.approx(1)
    assert hypervolume([at(trial, 0.8, 1000)], objectives, BOX) == pytest.approx(0.8)
    assert hypervolume([at(trial, 1.0, 10_000)], objectives, BOX) == pytest.approx(2 / 3)
    assert hypervolume([at(trial, 0.8, 10_000), at(trial, 0.9, 100_000)], objectives, BOX) == pytest.approx(
        0.8 * 2 / 3 + 0.1 * 1 / 3
    )


def test_beyond_the_box_nothing_more_is_won_and_nothing_lost(trial: TrialRecord) -> None:
    objectives = [ACCURACY, PARAMS]
    assert hypervolume([at(trial, 0.8, 10)], objectives, BOX) == pytest.approx(0.8)
    inside = [at(trial, 0.5, 10_000)]
    assert hypervolume([*inside, at(trial, 0.99, 2_000_000)], objectives, BOX) == hypervolume(inside, objectives, BOX)
    assert hypervolume([at(trial, math.nan, 1000)], objectives, BOX) == 0
    assert hypervolume([], objectives, BOX) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"outcome": Outcome.STOPPED},
        {"outcome": Outcome.INFEASIBLE, "excess": {"trainable_params": 0.1}},
        {"excess": {"trainable_params": 0.1}},
        {"baseline": "base"},
    ],
)
def test_only_feasible_designs_that_trained_in_full_count(trial: TrialRecord, change: dict[str, object]) -> None:
    assert hypervolume([at(trial, 0.9, 2000)], [ACCURACY, PARAMS], BOX) > 0
    assert hypervolume([replace(at(trial, 0.9, 2000), **change)], [ACCURACY, PARAMS], BOX) == 0


def test_the_history_never_falls_and_follows_the_order_of_completion(tmp_path) -> None:
    build = Builder(folder=tmp_path / "study")
    rng = np.random.default_rng(1)
    for _ in range(30):
        build.add(lora(8), params=HEAD + int(rng.integers(1, 200_000)), skill=float(rng.uniform(0.5, 0.9)))
    order = rng.permutation(30)
    build.trials = [replace(t, started_at=5.0, ended_at=10.0 + order[t.number]) for t in build.trials]
    box = Box(
        ideal={"accuracy": 1.0, "trainable_params": float(HEAD)},
        reference={"accuracy": 0.0, "trainable_params": 450_000.0},
    )
    state = build.state(facts={FACT: box.to_dict()})
    history = hypervolume_history(state)
    assert [point.trial for point in history] == [int(n) for n in np.argsort(order)]
    assert [point.elapsed_seconds for point in history] == [5.0 + i for i in range(30)]
    assert all(a.value <= b.value for a, b in itertools.pairwise(history))
    assert 0 < history[0].value < history[-1].value < 1
    assert history[-1].value == hypervolume(state.trials, state.objectives, box)


def test_a_clock_that_is_set_back_changes_no_order(tmp_path) -> None:
    """Trials 0 and 1 are of an older record; the clock jumps back a day before 3 ends, and by an hour before 5 does."""
    build = Builder(folder=tmp_path / "study")
    for i in range(6):
        build.add(lora(8), params=HEAD + 1000 * (6 - i), skill=0.5 + i / 20)
    times, events = (60.0, 50.0, 100.0, 160.0 - 86_400, 200.0 - 86_400, 230.0 - 90_000), (None, None, 5, 9, 7, 20)
    build.trials = [
        replace(trial, started_at=10.0 + min(0.0, time), ended_at=time, last_event=event)
        for trial, time, event in zip(build.trials, times, events, strict=True)
    ]
    box = Box(
        ideal={"accuracy": 1.0, "trainable_params": float(HEAD)},
        reference={"accuracy": 0.0, "trainable_params": 450_000.0},
    )
    history = hypervolume_history(build.state(facts={FACT: box.to_dict()}))
    assert [point.trial for point in history] == [1, 0, 2, 4, 3, 5]
    assert [point.elapsed_seconds for point in history] == [40.0, 50.0, 90.0, 90.0, 90.0, 90.0]
    assert all(a.value <= b.value for a, b in itertools.pairwise(history))


def test_a_study_of_an_earlier_version_has_no_history(tmp_path) -> None:
    build = Builder(folder=tmp_path)
    build.add(lora(8), params=200_000, skill=0.8)
    assert hypervolume_history(build.state()) == ()


CHEAPEST = {"trainable_params": 770, "adapter_bytes": 3080, "peak_memory": 10**8, "train_flops": 10**12}


def make(*names: str, limits: dict[str, float] | None = None, n_labels: int = 2) -> Box:
    cheapest = {**CHEAPEST, "inference_flops": 10**9}
    objectives = [OBJECTIVES[name] for name in names]
    return make_box(objectives, cheapest=cheapest, limits=limits or {}, model=make_summary(), n_labels=n_labels)


def test_a_cost_reaches_from_the_cheapest_design_to_the_budget() -> None:
    box = make("accuracy", "trainable_params", "peak_memory", limits={"trainable_params": 200_000})
    assert box.ideal == {"accuracy": 1.0, "trainable_params": 770, "peak_memory": 1e8}
    assert box.reference["trainable_params"] == 200_000
    assert box.reference["accuracy"] == 0


def test_without_a_limit_costs_end_at_full_fine_tuning() -> None:
    box = make(*CHEAPEST, "inference_flops")
    summary = make_summary()
    n_weights = summary.n_parameters + summary.n_head_parameters
    assert box.reference["trainable_params"] == n_weights
    assert box.reference["adapter_bytes"] == 4 * n_weights
    assert all(box.reference[name] > box.ideal[name] for name in box.ideal)


@pytest.mark.parametrize(
    ("metric", "n_labels", "worst"),
    [("loss", 4, math.log(4)), ("loss", 0, math.log(30_522)), ("perplexity", 0, 30_522), ("token_accuracy", 0, 0)],
)
def test_a_useless_model_guesses_among_the_answers(metric: str, n_labels: int, worst: float) -> None:
    assert make(metric, n_labels=n_labels).reference[metric] == worst


def test_perplexity_and_its_logarithm_rank_alike() -> None:
    loss, perplexity = make("loss", n_labels=0), make("perplexity", n_labels=0)
    for value in (0.0, 1.0, 3.5, 9.0):
        assert perplexity.share(OBJECTIVES["perplexity"], math.exp(value)) == pytest.approx(
            loss.share(OBJECTIVES["loss"], value)
        )


@pytest.mark.parametrize("name", [name for name, objective in OBJECTIVES.items() if objective.kind == "quality"])
def test_every_quality_has_a_box(name: str) -> None:
    box = make(name)
    assert OBJECTIVES[name].better(box.ideal[name], box.reference[name])


def test_a_budget_that_only_the_cheapest_design_meets(trial: TrialRecord) -> None:
    box = make("accuracy", "trainable_params", limits={"trainable_params": 770})
    assert hypervolume([at(trial, 0.8, 770)], [ACCURACY, PARAMS], box) == pytest.approx(0.8)
    assert hypervolume([at(trial, 0.8, 771)], [ACCURACY, PARAMS], box) == 0


def test_a_search_writes_the_box_before_its_first_trial_and_keeps_it(tmp_path) -> None:
    reviews(120).to_csv(tmp_path / "reviews.csv", index=False)
    study = {
        "model": save_tiny_bert(tmp_path / "model"),
        "data": str(tmp_path / "reviews.csv"),
        "splits": {"train": 40, "validation": 20, "test": 20},
        "space": {"blocks": {"lora": {"rank": [1, 2]}}},
        "objectives": ["accuracy", "peak_memory", "trainable_params"],
        "training": {"epochs": 1, "batch_size": 20, "precision": "fp32", "kernel": "sdpa"},
        "n_trials": 1,
        "output_dir": str(tmp_path),
    }
    file, seen = tmp_path / "study" / "study.json", []
    read = lambda event=None: seen.append(json.loads(file.read_text())["facts"][FACT])  # noqa: E731
    state = autopeft.search(**study, callbacks=[read]).state
    head = next(trial for trial in state.trials if trial.baseline == "head")
    for cost in ("peak_memory", "trainable_params"):
        assert seen[0]["ideal"][cost] == head.estimate.cost(cost)
    assert hypervolume_history(state)[-1].value > 0
    # A later run takes the box as it is, whatever this version would make of it.
    changed = json.loads(file.read_text())
    changed["facts"][FACT]["reference"]["peak_memory"] *= 2
    file.write_text(json.dumps(changed))
    autopeft.search(**{**study, "n_trials": 2}, callbacks=[read])
    assert seen[-1] == changed["facts"][FACT] != seen[0]
