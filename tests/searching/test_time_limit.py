"""A time limit is kept, nothing is begun in vain, and what is said of the time that is left is near the truth."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autopeft.executors.simulated import SimulatedExecutor
from autopeft.searching.plan import Baseline, SearchPlan
from autopeft.searching.runner import Runner
from autopeft.searching.samplers.base import make_sampler
from autopeft.searching.trials import unlearned
from autopeft.spec.cost import Measured
from autopeft.spec.design import Design
from autopeft.spec.event import Event
from autopeft.spec.model import ModelSummary
from autopeft.spec.study import EarlyStopping
from autopeft.spec.trial import Outcome, Segment, SegmentResult, SegmentStatus, TrialRecord
from autopeft.study.front import pareto_front
from autopeft.study.store import StudyStore
from autopeft.study.test_scores import read_scores
from tests.bench import FULL, Bench, CountedCosts, KnownWorker

STEP = 40
"""Examples of a training step."""


class Machine(KnownWorker):
    """A worker that takes its time, and keeps deadlines as the real one does: to a step, and to a batch.

    Args:
        full_seconds: Of a full training.
        evaluation_seconds: Of the validation split.
        test_size: Of the test split over the validation split.
        spread: How much designs differ: the speed of each is drawn between 1 and 1 + spread.
    """

    def __init__(
        self,
        model: ModelSummary,
        *,
        full_seconds: float,
        evaluation_seconds: float,
        test_size: float = 1.5,
        spread: float = 0.0,
    ) -> None:
        super().__init__(model)
        self.full_seconds = full_seconds
        self.evaluation_seconds = evaluation_seconds
        self.test_size = test_size
        self.spread = spread

    def slowness(self, segment: Segment) -> float:
        return 1 + self.spread * random.Random(segment.seed).random()

    def _parts(self, segment: Segment) -> tuple[float, float]:
        """Return the seconds of training and of the evaluation."""
        slowness = self.slowness(segment)
        if segment.stage == "test":
            return 0.0, slowness * self.evaluation_seconds * self.test_size
        share = (segment.stop - segment.start) / segment.full
        return slowness * self.full_seconds * share, slowness * self.evaluation_seconds

    def seconds(self, segment: Segment) -> float:
        return sum(self._parts(segment))

    def run(self, segment: Segment, should_stop: Callable[[], bool]) -> SegmentResult:
        training, evaluation = self._parts(segment)
        left = segment.deadline_seconds
        result = super().run(segment, should_stop)
        if left is None or training + evaluation <= left * (1 + 1e-9):
            measured = Measured(train_seconds=training, evaluation_seconds=evaluation, n_steps=1)
            return replace(result, measured=measured)
        late = replace(result, status=SegmentStatus.INTERRUPTED, scores={}, standard_errors={}, artifact={})
        if segment.stage == "test":
            return late
        n_examples = int((segment.stop - segment.start) * max(0.0, left - evaluation) / (training or 1.0))
        examples = segment.start + n_examples // STEP * STEP
        return replace(
            late,
            examples=examples,
            measured=Measured(train_seconds=left, n_steps=examples // STEP),
            checkpoint=f"{segment.design.key}:{examples}".encode(),
        )


BASELINES = (Baseline(name="head", design=Design(), learning_rates={"head": 1e-3}),)


def search(
    path: Path,
    worker: Machine,
    *,
    timeout: float | None,
    n_trials: int = 24,
    n_workers: int = 1,
    prior: float | None = 1.0,
    spent: float = 0.0,
    closing: float = 0.0,
    seed: int = 0,
    halving: EarlyStopping | None = EarlyStopping(),  # noqa: B008
    events: list[Event] | None = None,
) -> "Searched":
    """Run a search; `prior` is the timed speed over the true one of the fastest design."""
    bench = Bench(path, worker.model)
    store = bench.store()
    sampler = make_sampler("random", space=bench.space, model=worker.model, objectives=bench.objectives, seed=seed)
    sampler.update(unlearned(store))
    executor = SimulatedExecutor(worker, worker.seconds, n_workers=n_workers)
    plan = SearchPlan(
        objectives=bench.objectives,
        metric=bench.objectives[0],
        limits={},
        n_full_examples=FULL,
        n_trials=n_trials,
        timeout_seconds=timeout,
        spent_seconds=spent,
        closing_seconds=closing,
        halving=halving,
        baselines=BASELINES,
        seed=seed,
        test_size=worker.test_size,
        n_validation=round(10**6 * worker.evaluation_seconds / worker.full_seconds),
        seconds_per_flop=None if prior is None else prior * worker.full_seconds / 10**12,
    )
    loop = Runner(
        plan,
        store=store,
        folder=bench.folder,
        sampler=sampler,
        cost_model=CountedCosts(worker.model),
        executor=executor,
        on_event=(lambda _: None) if events is None else events.append,
    )
    loop.run()
    loop.check_front()
    return Searched(bench, store, loop, executor.now())


class Searched:
    """What a search has left.

    Attributes:
        records: Of the study, all calls together.
        scores: On the test split, by trial.
        front: Numbers of its trials.
        seconds: That the loop took on the virtual clock.
    """

    def __init__(self, bench: Bench, store: StudyStore, loop: Runner, seconds: float) -> None:
        self.records = store.records()
        self.scores = read_scores(store)
        self.front = {record.number for record in pareto_front(self.records, bench.objectives)}
        self.time_is_up = loop.time_is_up
        self.seconds = seconds

    @property
    def last(self) -> list[TrialRecord]:
        continued = {record.continues for record in self.records}
        return [record for record in self.records if record.number not in continued]


LIMITS = st.fixed_dictionaries(
    {
        "timeout": st.floats(20.0, 600.0),
        "n_workers": st.sampled_from([1, 1, 3]),
        "spent": st.sampled_from([0.0, 15.0]),
        "seed": st.integers(0, 99),
    }
)
"""A full training takes 40 s here."""


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(limit=LIMITS, evaluation_seconds=st.floats(0.5, 15.0))
def test_a_time_limit_is_kept_and_nothing_is_begun_in_vain(
    tmp_path_factory: pytest.TempPathFactory, summary: ModelSummary, limit: dict[str, float], evaluation_seconds: float
) -> None:
    worker = Machine(summary, full_seconds=40.0, evaluation_seconds=evaluation_seconds)
    found = search(tmp_path_factory.mktemp("limit") / "study", worker, n_trials=40, closing=5.0, **limit)  # type: ignore[arg-type]
    assert found.seconds + limit["spent"] <= limit["timeout"] - 5.0 + 1e-6
    assert all(record.rungs for record in found.last if record.has_started), "each has reached its first rung"
    stops = {FULL // 4, FULL // 2, FULL}
    assert {record.examples for record in found.last} <= stops, "nothing was cut short between two scores"
    assert found.front <= set(found.scores)
    n_started = sum(record.has_started for record in found.last)
    assert found.time_is_up or n_started == 40


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(timeout=st.floats(20.0, 300.0), prior=st.sampled_from([None, 0.2, 3.0]), seed=st.integers(0, 99))
def test_a_time_limit_is_kept_on_a_device_that_is_not_as_fast_as_it_seemed(
    tmp_path_factory: pytest.TempPathFactory, summary: ModelSummary, timeout: float, prior: float | None, seed: int
) -> None:
    worker = Machine(summary, full_seconds=40.0, evaluation_seconds=4.0, spread=1.0)
    path = tmp_path_factory.mktemp("limit") / "study"
    found = search(path, worker, timeout=timeout, prior=prior, seed=seed)
    assert found.seconds <= timeout + 1e-6
    assert not any(record.outcome is Outcome.RUNNING for record in found.last)


def test_calls_with_a_time_limit_do_the_whole_in_the_end(tmp_path: Path, summary: ModelSummary) -> None:
    worker = Machine(summary, full_seconds=40.0, evaluation_seconds=4.0, spread=0.5)
    for _ in range(20):
        found = search(tmp_path / "study", worker, timeout=150.0, n_trials=8)
        assert sum(record.has_started for record in found.last) <= 8
        if not found.time_is_up:
            break
    assert not found.time_is_up
    assert sum(record.has_started for record in found.last) == 8
    assert {record.outcome for record in found.last} == {Outcome.COMPLETE, Outcome.STOPPED}
    assert found.front <= set(found.scores)


def test_without_time_for_one_score_nothing_is_begun(tmp_path: Path, summary: ModelSummary) -> None:
    worker = Machine(summary, full_seconds=40.0, evaluation_seconds=4.0)
    found = search(tmp_path / "study", worker, timeout=12.0)
    assert (found.records, worker.segments, found.seconds) == ((), [], 0.0)
    assert found.time_is_up


class Uncertain(Machine):
    """Its final check takes ten times what evaluations say."""

    def _parts(self, segment: Segment) -> tuple[float, float]:
        training, evaluation = super()._parts(segment)
        return training, evaluation * (10 if segment.stage == "test" else 1)


def test_a_check_that_time_did_not_allow_is_made_by_the_next_call(tmp_path: Path, summary: ModelSummary) -> None:
    slow = Uncertain(summary, full_seconds=40.0, evaluation_seconds=4.0)
    first = search(tmp_path / "study", slow, timeout=400.0, n_trials=6)
    assert first.seconds <= 400.0
    assert first.front - set(first.scores)
    worker = Machine(summary, full_seconds=40.0, evaluation_seconds=4.0)
    while (again := search(tmp_path / "study", worker, timeout=400.0, n_trials=6)).time_is_up:
        pass
    assert again.front <= set(again.scores)


class Unlucky(KnownWorker):
    """Is stopped before the first step of some designs."""

    def run(self, segment: Segment, should_stop: Callable[[], bool]) -> SegmentResult:
        if segment.trial in (2, 3):
            return SegmentResult(trial=segment.trial, status=SegmentStatus.INTERRUPTED, examples=segment.start)
        return super().run(segment, should_stop)


def test_a_design_that_was_cut_short_before_its_first_step_has_not_started(bench: Bench) -> None:
    records = bench.run(Unlucky(bench.model), n_trials=6, halving=None).records()
    idle = [record for record in records if record.outcome is Outcome.INTERRUPTED]
    assert [record.number for record in idle] == [2, 3]
    assert not any(record.has_started for record in idle)
    assert sum(record.has_started for record in records) == 6, "others have taken their places"
    again = bench.run(KnownWorker(bench.model), n_trials=7, halving=None).records()
    assert sum(record.outcome is Outcome.COMPLETE for record in again) == 7
    assert again[-1].continues == 2, "one of them goes on, and the other waits"


@pytest.mark.parametrize(("seed", "timeout"), [(0, None), (1, None), (2, 400.0)])
def test_the_time_that_is_said_to_be_left_is_near_the_truth(
    tmp_path: Path, summary: ModelSummary, seed: int, timeout: float | None
) -> None:
    events: list[Event] = []
    worker = Machine(summary, full_seconds=40.0, evaluation_seconds=5.0, spread=0.5)
    found = search(tmp_path / "study", worker, timeout=timeout, seed=seed, n_trials=20, closing=10.0, events=events)
    first = next(i for i, event in enumerate(events) if event.trial.outcome is Outcome.COMPLETE)
    for progress in (event.progress for event in events[first:]):
        left, said = found.seconds + 10.0 - progress.elapsed_seconds, progress.remaining_seconds
        assert said is not None
        assert left / 1.5 - 20.0 <= said <= left * 1.5 + 20.0
        assert timeout is None or said <= timeout - progress.elapsed_seconds
