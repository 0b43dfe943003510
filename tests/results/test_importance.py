from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from autopeft.results.importance import MIN_TRIALS, Importances, importances
from autopeft.spec.objective import find_objective
from autopeft.spec.state import StudyState
from autopeft.spec.trial import Outcome, TrialRecord
from tests.results.generated import Builder, language_model, lora, many


def with_scores(state: StudyState, score: Callable[[TrialRecord], float]) -> StudyState:
    trials = tuple(replace(trial, scores={"accuracy": score(trial)}, rungs=()) for trial in state.trials)
    return replace(state, trials=trials)


def values(found: Importances) -> dict[str, float]:
    return {part.parameter: part.value for part in found.parameters}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyState:
    """240 random trials of which half have LoRA."""
    return many(Builder(folder=tmp_path_factory.mktemp("runs") / "many"), 240)


def rank_of(trial: TrialRecord) -> int | None:
    return next((block.rank for block in trial.design.blocks if block.kind == "lora"), None)


def test_a_dominant_conditional_rank_gets_its_due(study: StudyState) -> None:
    """The rank decides all, where there is one; designs without LoRA lie in the middle."""
    middle, rng = 0.5 * np.log2(32), np.random.default_rng(0)

    def score(trial: TrialRecord) -> float:
        rank = rank_of(trial)
        return 0.7 + 0.03 * (np.log2(rank) if rank else middle) + 0.002 * rng.normal()

    found = importances(with_scores(study, score), find_objective("accuracy"))
    assert found.r2 > 0.9
    first, second = found.parameters[:2]
    assert first.parameter == "lora.rank"
    # With half of the trials at the middle, all variance goes through the rank, and half of it through the use too:
    # switching LoRA on or off moves a trial between the middle and a random rank.
    assert first.value == pytest.approx(1.0, abs=0.15)
    assert second.parameter == "lora.use"
    assert second.value == pytest.approx(0.5, abs=0.15)
    assert all(part.value < 0.05 for part in found.parameters[2:])
    assert first.n_trials == sum(rank_of(t) is not None and t.outcome is Outcome.COMPLETE for t in study.trials)


def test_shares_of_a_known_function_are_its_sobol_indices(study: StudyState) -> None:
    """Two choices that vary alone add up: each has its share of the variance."""

    def score(trial: TrialRecord) -> float:
        head = np.log10(trial.learning_rates["head"])
        return 0.7 + 0.04 * (head + 3) + (0.02 if "prefix" in trial.design.kinds else 0.0)

    state = with_scores(study, score)
    complete = [trial for trial in state.trials if trial.outcome is Outcome.COMPLETE]
    head = np.var([0.04 * np.log10(trial.learning_rates["head"]) for trial in complete])
    use = np.var([0.02 if "prefix" in trial.design.kinds else 0.0 for trial in complete])
    found = values(importances(state, find_objective("accuracy")))
    assert found["head.learning_rate"] == pytest.approx(head / (head + use), abs=0.1)
    assert found["prefix.use"] == pytest.approx(use / (head + use), abs=0.1)
    assert all(abs(value) < 0.03 for name, value in found.items() if name not in ("head.learning_rate", "prefix.use"))


def test_layers_are_one_choice(study: StudyState) -> None:
    def score(trial: TrialRecord) -> float:
        chosen = [block.layer_indices(study.model) for block in trial.design.blocks if block.kind == "adapter"]
        return 0.7 + (0.05 if chosen and 2 in chosen[0] else 0.0)

    found = values(importances(with_scores(study, score), find_objective("accuracy")))
    assert max(found, key=found.__getitem__) in ("adapter.layers", "adapter.use")
    assert found["adapter.layers"] > 0.2
    assert not any(name.startswith("adapter.layers.") for name in found)


def test_what_always_goes_with_the_size_is_not_a_choice_of_its_own(study: StudyState) -> None:
    names = values(importances(study, find_objective("accuracy")))
    assert "lora.rank" in names
    assert "lora.alpha" not in names  # always twice the rank here
    assert "lora.roles" not in names  # always the same here


def test_noise_is_told_from_what_mattered(study: StudyState) -> None:
    rng = np.random.default_rng(0)
    found = importances(with_scores(study, lambda trial: 0.7 + 0.01 * rng.normal()), find_objective("accuracy"))
    assert found.r2 < 0.05
    assert found.parameters == ()
    assert "too few trials to tell" in found.reason


def test_few_trials_say_nothing(build: Builder) -> None:
    for rank in range(1, MIN_TRIALS):
        build.add(lora(rank), params=1000 * rank, skill=0.6 + 0.01 * rank)
    build.add(lora(40), params=1000, skill=0.9, outcome=Outcome.STOPPED, share=0.25)
    found = importances(build.state(), find_objective("accuracy"))
    assert found.reason == "too few trials to tell: 19 trained in full, and it takes 20"
    build.add(lora(20), params=20_000, skill=0.8)
    assert importances(build.state(), find_objective("accuracy")).parameters


def test_scores_at_rungs_help_and_are_not_predicted(study: StudyState) -> None:
    """With scores at rungs the forest has more to learn from; the trials that it is judged on are the same."""
    with_rungs = importances(study, find_objective("accuracy"))
    without = importances(
        replace(study, trials=tuple(replace(trial, rungs=()) for trial in study.trials)), find_objective("accuracy")
    )
    assert with_rungs.n_trials == without.n_trials
    assert with_rungs.r2 > 0.9


def test_costs_are_explained_by_what_they_depend_on(study: StudyState) -> None:
    found = importances(study, find_objective("trainable_params"))
    assert found.r2 > 0.8
    assert not any("learning_rate" in part.parameter for part in found.parameters)
    shares = values(found)
    assert shares["lora.rank"] > 10 * max(shares["prefix.use"], shares["prefix.length"])


def test_the_base_model_is_not_a_trial_of_the_search(build: Builder) -> None:
    state = language_model(build)
    found = importances(state, find_objective("trainable_params"))
    assert found.n_trials < len({trial.design.key for trial in state.chains}) + 1
    assert np.isfinite([part.value for part in found.parameters]).all()


def test_a_study_of_learning_rates_alone_is_explained(build: Builder) -> None:
    for index in range(40):
        record = build.add(lora(8), params=1000, skill=0.7)
        score = 0.7 + 0.002 * index
        rates = {"head": 1e-3, "lora": 10 ** (-4 + index / 20)}
        build.trials[-1] = replace(record, learning_rates=rates, scores={"accuracy": score}, rungs=())
    found = importances(build.state(), find_objective("accuracy"))
    assert [part.parameter for part in found.parameters] == ["lora.learning_rate"]
    assert found.parameters[0].value > 0.8
    assert importances(build.state(), find_objective("trainable_params")).reason.startswith("too few trials")
