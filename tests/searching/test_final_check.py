"""The final check: each score is written by itself, a hung one is noticed, older records are read."""

import json
from collections.abc import Callable

import pytest

from autopeft.spec.state import TestScore
from autopeft.spec.trial import Segment, SegmentResult
from autopeft.study.front import pareto_front
from autopeft.study.test_scores import read_scores
from tests.bench import Bench, KnownWorker

SCORE = TestScore(scores={"accuracy": 0.5}, standard_errors={"accuracy": 0.01})


class Killed(BaseException):
    """Ends the driver on the spot: nothing below the loop catches it."""


class KilledInTheCheck(KnownWorker):
    """Ends the driver when it is to score its third design on the test split."""

    def run(self, segment: Segment, should_stop: Callable[[], bool]) -> SegmentResult:
        if sum(s.stage == "test" for s in self.segments) == 2 and segment.stage == "test":
            raise Killed
        return super().run(segment, should_stop)


def test_a_check_that_is_killed_keeps_every_score_and_goes_on_with_the_rest(bench: Bench) -> None:
    with pytest.raises(Killed):
        bench.run(KilledInTheCheck(bench.model), n_trials=16, halving=None, sampler="random")
    store = bench.store()
    first = read_scores(store)
    assert list(first.values()) == [SCORE, SCORE]
    worker = KnownWorker(bench.model)
    store = bench.run(worker, n_trials=16, halving=None, sampler="random")
    front = {r.number for r in pareto_front(store.records(), bench.objectives)}
    assert read_scores(store) == dict.fromkeys(front, SCORE)
    assert {s.trial for s in worker.segments} == front - set(first), "none is scored twice"


def test_a_score_is_written_without_the_others(bench: Bench) -> None:
    """What the journal gains for one score does not grow with the number of scores."""
    bench.run(KnownWorker(bench.model), n_trials=30, halving=None, sampler="random")
    lines = bench.folder.journal.read_text().splitlines()
    facts = [line for line in lines if any(key.startswith("tests") for key in json.loads(line).get("user_attr", {}))]
    assert len(facts) >= 4
    assert max(map(len, facts)) <= min(map(len, facts)) + 1, "the number of a trial has one digit or two"


def test_older_records_are_read_and_added_to(bench: Bench) -> None:
    old = {"scores": {"accuracy": 0.75}, "standard_errors": {}}
    bench.run(KnownWorker(bench.model), n_trials=8, halving=None, sampler="random", test=False)
    store = bench.store()
    front = [r.number for r in pareto_front(store.records(), bench.objectives)]
    assert len(front) >= 3
    store.set_fact("tests", {str(front[0]): old})
    store.set_fact("tests@another-driver", {str(front[1]): old})
    worker = KnownWorker(bench.model)
    scores = read_scores(bench.run(worker, n_trials=8, halving=None, sampler="random"))
    assert {s.trial for s in worker.segments} == set(front[2:])
    assert scores == {**dict.fromkeys(front[:2], TestScore(**old)), **dict.fromkeys(front[2:], SCORE)}


def test_a_check_is_expected_to_take_what_evaluations_took(bench: Bench) -> None:
    """Without a time limit, that alone tells that it hangs; the worker says that it evaluates for 0.1 seconds."""
    worker = KnownWorker(bench.model)
    bench.run(worker, n_trials=8, test_size=3.0)
    checks = [s for s in worker.segments if s.stage == "test"]
    assert checks
    assert [s.expected_seconds for s in checks] == pytest.approx([0.3] * len(checks), rel=0.15)
    assert all(s.deadline_seconds is None for s in checks)
