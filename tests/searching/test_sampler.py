"""Samplers: one contract for all of them, and the memory of TPE, which is given so many trials and no more."""

import random
from dataclasses import replace
from typing import Any

import pytest
from optuna.trial import TrialState

from autopeft.errors import StudyError
from autopeft.searching.samplers import optuna_sampler as module
from autopeft.searching.samplers.base import Lesson, Observation, Proposal, make_sampler, sampler_names
from autopeft.searching.samplers.optuna_sampler import OptunaSampler
from autopeft.spec.model import ModelSummary
from autopeft.spec.objective import OBJECTIVES
from autopeft.spec.space import SearchSpace
from autopeft.spec.trial import Outcome, TrialRecord
from tests.bench import SPACE, cost

OBJECTIVE_PAIR = (OBJECTIVES["accuracy"], OBJECTIVES["trainable_params"])
PLAIN = {"blocks": {"lora": {"rank": {"int": [1, 64], "log": True}, "learning_rate": {"log": [1e-4, 1e-2]}}}}
"""A space whose designs all have the same parameters."""


def make(name: str, model: ModelSummary, *, seed: int = 0, space: dict[str, Any] | None = None) -> OptunaSampler:
    chosen = SearchSpace.from_dict(space or (PLAIN if name == "gp" else SPACE))
    made = make_sampler(name, space=chosen, model=model, objectives=OBJECTIVE_PAIR, seed=seed)
    assert isinstance(made, OptunaSampler)
    return made


def record_of(proposal: Proposal, model: ModelSummary, accuracy: float, params: int) -> TrialRecord:
    estimate = replace(cost(proposal.draw.design, model), trainable_params=params)
    return TrialRecord(
        number=proposal.ticket,
        design=proposal.draw.design,
        learning_rates=proposal.draw.learning_rates,
        seed=0,
        outcome=Outcome.COMPLETE,
        estimate=estimate,
        scores={"accuracy": accuracy},
    )


def seen(
    proposal: Proposal,
    model: ModelSummary,
    lesson: Lesson = "complete",
    *,
    accuracy: float = 0.5,
    params: int = 50,
    excess: dict[str, float] | None = None,
    own: bool = True,
) -> Observation:
    return Observation(
        params=proposal.params,
        distributions=proposal.distributions,
        lesson=lesson,
        record=record_of(proposal, model, accuracy, params) if lesson == "complete" else None,
        excess=excess or {},
        ticket=proposal.ticket if own else None,
    )


@pytest.mark.parametrize("name", ["auto", *sampler_names()])
class TestContract:
    """What every sampler does; one from another package can be put through this too."""

    def test_proposals_are_legal_designs_of_the_space(self, name: str, summary: ModelSummary) -> None:
        sampler = make(name, summary)
        for n in (1, 3):
            proposals = sampler.suggest(n)
            assert len(proposals) == n
            for proposal in proposals:
                assert proposal.draw.violation or proposal.draw.design.blocks
                assert proposal.params.keys() == proposal.distributions.keys() > set()
        assert len({proposal.ticket for proposal in (*sampler.suggest(2), *proposals)}) == 5

    def test_equal_seeds_and_histories_give_equal_proposals(self, name: str, summary: ModelSummary) -> None:
        def designs(seed: int) -> list[tuple[str, dict[str, Any]]]:
            sampler, found = make(name, summary, seed=seed), []
            for i in range(14):  # some of them after the random ones that samplers begin with
                (proposal,) = sampler.suggest()
                found.append((proposal.draw.design.key, dict(proposal.params)))
                sampler.update([seen(proposal, summary, accuracy=i / 14, params=100 - i)])
            return found

        assert designs(0) == designs(0) != designs(1)

    def test_it_learns_from_every_lesson_its_own_or_not(self, name: str, summary: ModelSummary) -> None:
        sampler, other = make(name, summary), make("random", summary, space=PLAIN if name == "gp" else SPACE)
        lessons: list[Lesson] = ["complete", "worse", "nothing"]
        for i in range(30):
            for source in (sampler, other):
                (proposal,) = source.suggest()
                lesson = lessons[i % 3]
                excess = {"trainable_params": 0.5} if lesson == "worse" and i % 2 else {}
                sampler.update([seen(proposal, summary, lesson, accuracy=i / 30, excess=excess, own=source is sampler)])
        assert sampler.suggest()[0].draw.design is not None

    def test_random_draws_do_not_depend_on_what_is_known(self, name: str, summary: ModelSummary) -> None:
        taught, fresh = make(name, summary), make(name, summary)
        for proposal in make("random", summary, seed=5, space=PLAIN if name == "gp" else SPACE).suggest(20):
            taught.update([seen(proposal, summary, accuracy=0.9, own=False)])
        drawn = [[p.params for p in sampler.suggest(5, at_random=True)] for sampler in (taught, fresh)]
        assert drawn[0] == drawn[1]


def test_a_gaussian_process_says_which_spaces_it_cannot_search(summary: ModelSummary) -> None:
    with pytest.raises(StudyError, match="sampler gp needs a space whose designs all have the same parameters, but"):
        make("gp", summary, space=SPACE)


def test_an_unknown_sampler_is_refused_with_those_that_there_are(summary: ModelSummary) -> None:
    with pytest.raises(StudyError, match=r"one of gp, nsga2, random, tpe, tpe-multivariate, but got 'tpee'"):
        make("tpee", summary)


@pytest.fixture
def sampler(summary: ModelSummary, monkeypatch: pytest.MonkeyPatch) -> OptunaSampler:
    monkeypatch.setattr(module, "MAX_HISTORY", 40)
    return make("tpe", summary)


def test_tpe_keeps_the_best_and_a_sample_of_what_ended_and_of_what_runs(
    sampler: OptunaSampler, summary: ModelSummary
) -> None:
    values = random.Random(0)
    still_open: list[Proposal] = []
    best = (2.0, 1.0)  # dominates all that follows
    for i in range(150):
        (proposal,) = sampler.suggest()
        if i == 0:
            sampler.update([seen(proposal, summary, accuracy=best[0], params=int(best[1]))])
        elif i % 3 == 0:
            still_open.append(proposal)
        elif i % 3 == 1:
            sampler.update([seen(proposal, summary, "worse")])
        else:
            sampler.update([seen(proposal, summary, accuracy=values.random(), params=values.randint(10, 99))])
        known = sampler._study.get_trials(deepcopy=False)
        assert len(known) <= 40
        assert any(trial.values == list(best) for trial in known)
    assert {trial.state for trial in known} == {TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING}
    n_complete = len(sampler._study.get_trials(states=(TrialState.COMPLETE,)))
    sampler.update([seen(proposal, summary) for proposal in still_open])  # also those that it forgot
    assert len(sampler._study.get_trials(states=(TrialState.COMPLETE,))) == n_complete + len(still_open)
    assert not sampler._study.get_trials(states=(TrialState.RUNNING,))
    sampler.suggest()


def test_what_failed_is_forgotten_whether_it_was_known_or_not(sampler: OptunaSampler, summary: ModelSummary) -> None:
    sampler.update([seen(proposal, summary, "nothing") for proposal in sampler.suggest(60)])
    assert not sampler._study.get_trials(states=(TrialState.RUNNING,))


def test_a_refusal_is_learned_from_with_its_excess(sampler: OptunaSampler, summary: ModelSummary) -> None:
    for _ in range(50):
        sampler.update([seen(sampler.suggest()[0], summary, "worse", excess={"trainable_params": 0.5})])
    known = sampler._study.get_trials(deepcopy=False)
    assert len(known) <= 40
    assert all(trial.constraints == {"trainable_params": 0.5} for trial in known)


def test_random_and_genetic_samplers_forget_nothing(summary: ModelSummary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_HISTORY", 10)
    for name in ("random", "nsga2"):
        sampler = make(name, summary)
        for i in range(30):
            sampler.update([seen(sampler.suggest()[0], summary, accuracy=i / 30, params=i)])
        assert len(sampler._study.get_trials()) == 30
