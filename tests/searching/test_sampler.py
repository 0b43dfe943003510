"""The sampler's memory: TPE is given so many trials and no more, and none that is open gets lost by that."""

import random

import pytest
from optuna.trial import TrialState

from autopeft.searching import sampler as module
from autopeft.searching.sampler import Sampler
from autopeft.spec.model import ModelSummary
from autopeft.spec.objective import OBJECTIVES
from autopeft.spec.space import SearchSpace
from tests.searching.conftest import SPACE

OBJECTIVE_PAIR = (OBJECTIVES["accuracy"], OBJECTIVES["trainable_params"])


@pytest.fixture
def sampler(summary: ModelSummary, monkeypatch: pytest.MonkeyPatch) -> Sampler:
    monkeypatch.setattr(module, "MAX_HISTORY", 40)
    return Sampler("tpe", space=SearchSpace.from_dict(SPACE), model=summary, objectives=OBJECTIVE_PAIR, seed=0)


def test_tpe_keeps_the_best_and_a_sample_of_what_ended_and_of_what_runs(sampler: Sampler) -> None:
    values = random.Random(0)
    open_tickets: list[int] = []
    best = (2.0, 1.0)  # dominates all that follows
    for i in range(150):
        ticket = sampler.propose().ticket
        if i == 0:
            sampler.tell(ticket, TrialState.COMPLETE, best)
        elif i % 3 == 0:
            open_tickets.append(ticket)
        elif i % 3 == 1:
            sampler.tell(ticket, TrialState.PRUNED)
        else:
            sampler.tell(ticket, TrialState.COMPLETE, (values.random(), values.randint(10, 99)))
        known = sampler._study.get_trials(deepcopy=False)
        assert len(known) <= 40
        assert any(trial.values == list(best) for trial in known)
    assert {trial.state for trial in known} == {TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING}
    n_complete = len(sampler._study.get_trials(states=(TrialState.COMPLETE,)))
    for ticket in open_tickets:  # also those that it forgot
        sampler.tell(ticket, TrialState.COMPLETE, (0.5, 50))
    assert len(sampler._study.get_trials(states=(TrialState.COMPLETE,))) == n_complete + len(open_tickets)
    assert not sampler._study.get_trials(states=(TrialState.RUNNING,))
    sampler.propose()


def test_what_failed_is_forgotten_whether_it_was_known_or_not(sampler: Sampler) -> None:
    tickets = [sampler.propose().ticket for _ in range(60)]
    for ticket in tickets:
        sampler.tell(ticket, TrialState.FAIL)
    assert not sampler._study.get_trials(states=(TrialState.RUNNING,))


def test_a_refusal_is_learned_from_with_its_excess(sampler: Sampler) -> None:
    for _ in range(50):
        sampler.refuse(sampler.propose(), {"trainable_params": 0.5}, learn=True)
    known = sampler._study.get_trials(deepcopy=False)
    assert len(known) <= 40
    assert all(trial.constraints == {"trainable_params": 0.5} for trial in known)


def test_random_and_genetic_samplers_forget_nothing(summary: ModelSummary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_HISTORY", 10)
    for name in ("random", "nsga2"):
        sampler = Sampler(name, space=SearchSpace.from_dict(SPACE), model=summary, objectives=OBJECTIVE_PAIR, seed=0)
        for i in range(30):
            sampler.tell(sampler.propose().ticket, TrialState.COMPLETE, (i / 30, i))
        assert len(sampler._study.get_trials()) == 30
