"""Decisions derived again from the record, and records that were changed."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner

from autopeft.cli import main
from autopeft.errors import ResultError, SearchError
from autopeft.searching.replay import Replay, replay
from autopeft.searching.trials import MAX_RETRIES
from autopeft.spec.event import Event, EventKind
from autopeft.spec.state import StudyState
from autopeft.spec.study import make_study
from autopeft.spec.training import Training
from autopeft.spec.trial import Outcome, Segment, SegmentStatus, TrialRecord
from autopeft.study.front import pareto_front
from autopeft.study.front_file import front_values
from autopeft.study.store import StudyStore
from tests.bench import FULL, Bench, KnownWorker
from tests.results.test_dashboard import describe

LIMITS = {"trainable_params": 60_000}


def state_of(bench: Bench, store: StudyStore, limits: dict[str, int] | None = None) -> StudyState:
    return StudyState(
        folder=bench.folder.path,
        spec=make_study({"model": "bert", "data": "reviews.csv", "study_name": "test"}),
        model=bench.model,
        training=Training(),
        metric="accuracy",
        limits=LIMITS if limits is None else limits,
        n_full_examples=FULL,
        trials=store.records(),
        n_refused=store.fact("n_refused") or {},
    )


def sometimes_fails(segment: Segment) -> SegmentStatus:
    return SegmentStatus.FAILED if segment.trial % 11 == 7 else SegmentStatus.DONE


@pytest.fixture
def state(bench: Bench) -> StudyState:
    """Return a study with everything in it: refusals, failures, promotions, a time limit, a kill in its midst."""
    worker = KnownWorker(bench.model, sometimes_fails)
    bench.run(worker, n_trials=12, n_workers=3, limits=LIMITS, sampler="random", timeout=60)
    seen: list[Event] = []

    def kill(event: Event) -> None:
        seen.append(event)
        if len(seen) == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.run(worker, n_trials=40, n_workers=3, limits=LIMITS, sampler="random", seed=1, on_event=kill)
    store = bench.run(worker, n_trials=40, n_workers=3, limits=LIMITS, sampler="random", seed=2)
    found = state_of(bench, store)
    outcomes = {trial.outcome for trial in found.trials}
    assert outcomes == set(Outcome) - {Outcome.RUNNING, Outcome.OUT_OF_MEMORY}
    ended = {found.trials[t.continues].outcome for t in found.trials if t.continues is not None}
    assert ended == {Outcome.STOPPED, Outcome.INTERRUPTED}, "both kinds of continuation"
    return found


def test_the_rules_give_what_the_record_holds(state: StudyState) -> None:
    found = replay(state)
    differing = [(t.number, s.says) for t in found.trials for s in t.steps if s.agrees is not True]
    assert not differing
    assert found.agrees
    assert found.front == tuple(t.number for t in pareto_front(state.trials, state.objectives))
    for trial, record in zip(found.trials, state.trials, strict=True):
        kinds = [step.kind for step in trial.steps]
        assert kinds[0] == "budget"
        assert kinds.count("end") == (record.outcome is not Outcome.INFEASIBLE)
        assert ("front" in kinds) == (record.outcome is Outcome.COMPLETE)
    n_scores = len({score.event for trial in state.trials for score in trial.rungs})
    assert sum(step.kind == "rung" for trial in found.trials for step in trial.steps) == n_scores


def test_every_event_has_a_place_of_its_own(state: StudyState) -> None:
    inherited = {e for t in state.trials if t.continues is not None for e in state.trials[t.continues].events}
    own = [e for t in state.trials for e in t.events if not (t.continues is not None and e in inherited)]
    assert len(own) == len(set(own))
    assert max(own) < 3 * len(state.trials) + sum(len(t.rungs) for t in state.trials)


def first(state: StudyState, outcome: Outcome, *, n_rungs: int = 0) -> TrialRecord:
    return next(t for t in state.trials if t.outcome is outcome and len(t.rungs) >= n_rungs and t.continues is None)


def changed(state: StudyState, trial: TrialRecord) -> Replay:
    return replay(replace(state, trials=tuple(trial if t.number == trial.number else t for t in state.trials)))


def blamed(found: Replay) -> set[int]:
    return {trial.number for trial in found.trials if not trial.agrees}


def test_a_changed_score_is_found(state: StudyState) -> None:
    stopped = first(state, Outcome.STOPPED, n_rungs=1)
    best = replace(stopped.rungs[-1], scores={"accuracy": 0.99})
    found = changed(state, replace(stopped, rungs=(*stopped.rungs[:-1], best)))
    assert stopped.number in blamed(found)
    says = next(s.says for t in found.trials for s in t.steps if t.number == stopped.number and s.agrees is False)
    assert "accuracy 0.99 is place 1" in says
    assert "but the record says place" in says


def test_a_verdict_that_was_not_followed_is_found(state: StudyState) -> None:
    stopped = first(state, Outcome.STOPPED, n_rungs=1)
    assert blamed(changed(state, replace(stopped, outcome=Outcome.FAILED))) >= {stopped.number}
    complete = first(state, Outcome.COMPLETE, n_rungs=2)
    kept = replace(complete, rungs=complete.rungs[:1], outcome=Outcome.STOPPED)
    assert complete.number in blamed(changed(state, kept))


def test_a_trial_over_the_budget_is_found(state: StudyState) -> None:
    complete = first(state, Outcome.COMPLETE)
    large = replace(complete.estimate, trainable_params=10**8)
    over = {"trainable_params": 10**8 / LIMITS["trainable_params"] - 1}
    assert blamed(changed(state, replace(complete, estimate=large, excess=over))) >= {complete.number}
    assert blamed(changed(state, replace(complete, excess={"trainable_params": -0.5}))) == {complete.number}
    refused = first(state, Outcome.INFEASIBLE)
    assert blamed(changed(state, replace(refused, excess={"trainable_params": -0.5}))) == {refused.number}


def test_a_continuation_of_another_design_or_too_early_is_found(state: StudyState) -> None:
    of_stopped = [
        t for t in state.trials if t.continues is not None and state.trials[t.continues].outcome is Outcome.STOPPED
    ]
    successor = of_stopped[0]
    earlier = state.trials[successor.continues or 0]
    assert successor.number in blamed(changed(state, replace(successor, continues=0)))
    assert earlier.last_event is not None
    early = replace(successor, first_event=earlier.rungs[-1].event + 1)  # type: ignore[operator]
    assert successor.number in blamed(changed(state, early))


def test_a_trial_that_did_not_train_in_full_is_not_complete(state: StudyState) -> None:
    complete = first(state, Outcome.COMPLETE)
    assert blamed(changed(state, replace(complete, examples=FULL - 1))) == {complete.number}


def test_more_retries_than_there_may_be_are_found(state: StudyState) -> None:
    complete = first(state, Outcome.COMPLETE)
    assert not blamed(changed(state, replace(complete, n_retries=MAX_RETRIES)))
    assert blamed(changed(state, replace(complete, n_retries=MAX_RETRIES + 1))) == {complete.number}


def drop_the_first(designs: list[dict[str, Any]]) -> None:
    designs.remove(min(designs, key=lambda design: design["trial"]))


def change_the_score(designs: list[dict[str, Any]]) -> None:
    designs[0]["validation"]["accuracy"]["value"] += 1e-6


def change_the_cost(designs: list[dict[str, Any]]) -> None:
    designs[0]["predicted"]["trainable_params"] -= 1


def name_a_trial_that_is_none(designs: list[dict[str, Any]]) -> None:
    designs[0]["trial"] = 10_000


@pytest.mark.parametrize("change", [drop_the_first, change_the_score, change_the_cost, name_a_trial_that_is_none])
def test_a_front_that_was_changed_by_hand_is_found(
    state: StudyState, change: Callable[[list[dict[str, Any]]], None]
) -> None:
    describe(state)
    file, folder = state.folder / "front.json", str(state.folder)
    values = front_values(state)
    file.write_text(json.dumps(values))
    assert CliRunner().invoke(main, ["replay", folder]).exit_code == 0
    change(values["designs"])
    file.write_text(json.dumps(values))
    said = CliRunner().invoke(main, ["replay", folder])
    assert said.exit_code == 1
    assert "but front.json" in said.output
    assert "the record differs from the rules in trial" in said.output


def test_a_design_that_another_beats_has_no_place_in_the_file(state: StudyState) -> None:
    front = pareto_front(state.trials, state.objectives)
    beaten = next(t for t in state.trials if t.outcome is Outcome.COMPLETE and t not in front)
    stopped = first(state, Outcome.STOPPED)
    for wrong in (beaten, stopped):
        values = front_values(state)
        values["designs"].append({**values["designs"][0], "trial": wrong.number})
        (state.folder / "front.json").write_text(json.dumps(values))
        assert blamed(replay(state)) == {wrong.number}


def test_a_front_of_an_earlier_moment_is_told_from_a_false_one(state: StudyState) -> None:
    """A search that was killed after more designs had trained has not written it again."""
    latest = max(pareto_front(state.trials, state.objectives), key=lambda trial: trial.last_event or 0)
    moment = latest.last_event or 0
    ended_later = {t.number for t in state.trials if t.outcome is Outcome.COMPLETE and (t.last_event or 0) >= moment}
    earlier = tuple(replace(t, outcome=Outcome.RUNNING) if t.number in ended_later else t for t in state.trials)
    (state.folder / "front.json").write_text(json.dumps(front_values(replace(state, trials=earlier))))
    found = replay(state)
    assert found.agrees
    says = [step.says for step in found.trials[latest.number].steps if step.agrees is None]
    assert len(says) == 1
    assert says[0].endswith("; but front.json, which may be of an earlier moment, does not have it")


def test_a_file_that_is_no_front_is_named(state: StudyState) -> None:
    (state.folder / "front.json").write_text("{}")
    with pytest.raises(ResultError, match=r"front\.json must be a front that a search wrote, .*remove it"):
        replay(state)


def test_a_record_of_before_says_what_it_cannot_tell(state: StudyState) -> None:
    plain = tuple(
        replace(
            trial,
            first_event=None,
            last_event=None,
            rungs=tuple(replace(score, event=None, verdict=None) for score in trial.rungs),
        )
        for trial in state.trials
    )
    found = replay(replace(state, trials=plain))
    assert found.agrees
    assert {step.agrees for trial in found.trials for step in trial.steps if step.kind == "rung"} == {None}


def test_what_another_driver_knew_is_no_difference(state: StudyState) -> None:
    """Each compares what it knows, where several share a study."""
    stopped = first(state, Outcome.STOPPED, n_rungs=1)
    score = stopped.rungs[-1]
    assert score.verdict is not None
    knew_less = replace(score, verdict=replace(score.verdict, n_known=1, n_compared=1, goes_on=False))
    told = replace(stopped, rungs=(*stopped.rungs[:-1], knew_less))
    assert blamed(changed(state, told)) == {stopped.number}
    other = first(state, Outcome.COMPLETE)
    trials = {t.number: t for t in state.trials} | {stopped.number: told, other.number: replace(other, driver="b")}
    assert not blamed(replay(replace(state, trials=tuple(trials.values()))))


def test_it_is_json(state: StudyState) -> None:
    values = json.loads(json.dumps(replay(state).to_dict(), allow_nan=False))
    assert values["agrees"] is True
    assert [trial["number"] for trial in values["trials"]] == list(range(len(state.trials)))


def test_a_search_that_gives_up_can_be_explained(bench: Bench) -> None:
    with pytest.raises(SearchError):
        bench.run(KnownWorker(bench.model, lambda _: SegmentStatus.FAILED), n_workers=2, halving=None)
    found = replay(state_of(bench, bench.store(), {}))
    assert found.agrees
    assert found.front == ()
    assert "no limit applies" in found.trials[0].steps[0].says


def test_events_reach_callbacks_with_what_was_decided(bench: Bench) -> None:
    events: list[Event] = []
    bench.run(KnownWorker(bench.model), n_trials=8, on_event=events.append)
    rungs = [event for event in events if event.kind is EventKind.RUNG]
    assert rungs
    assert all(event.trial.rungs[-1].verdict is not None for event in rungs)
