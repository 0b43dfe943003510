"""The search loop over known costs and qualities, under a virtual clock."""

from collections import Counter
from collections.abc import Callable

import optuna
import pytest
from optuna.trial import TrialState

from autopeft.errors import BudgetError, DesignError, SearchError
from autopeft.searching.plan import Baseline
from autopeft.spec.cost import Estimate
from autopeft.spec.design import Design
from autopeft.spec.trial import Outcome, Segment, SegmentStatus, TrialRecord
from autopeft.study.front import compared, pareto_front
from autopeft.study.test_scores import read_scores
from tests.bench import FULL, Bench, CountedCosts, KnownWorker, cost
from tests.conftest import started


def outcomes(records: tuple[TrialRecord, ...]) -> Counter[Outcome]:
    return Counter(record.outcome for record in records)


@pytest.mark.parametrize("n_workers", [1, 4])
@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_every_design_ends_and_only_full_ones_count(bench: Bench, n_workers: int, sampler: str) -> None:
    worker = KnownWorker(bench.model)
    records = bench.run(worker, n_trials=24, n_workers=n_workers, sampler=sampler).records()
    assert len(started(records)) == 24
    assert [r.number for r in records] == list(range(len(records)))
    assert not outcomes(records)[Outcome.RUNNING]
    assert 24 / 4 <= outcomes(records)[Outcome.COMPLETE] < 24
    assert all(r.examples == FULL for r in records if r.outcome is Outcome.COMPLETE)
    assert all(r.examples < FULL for r in records if r.outcome is Outcome.STOPPED)
    trained = sum(s.stop - s.start for s in worker.segments if s.stage == "train")
    assert trained < 24 * FULL * 0.8, "early stopping must save training"


def test_without_early_stopping_every_design_trains_in_full(bench: Bench) -> None:
    records = bench.run(KnownWorker(bench.model), n_trials=8, halving=None).records()
    assert outcomes(records) == {Outcome.COMPLETE: 8}


def test_segments_of_a_trial_join_without_gap_or_overlap(bench: Bench) -> None:
    worker = KnownWorker(bench.model)
    records = bench.run(worker, n_trials=20).records()
    by_number = {r.number: r for r in records}
    ends: dict[int, int] = {}
    for segment in (s for s in worker.segments if s.stage == "train"):
        previous = by_number[segment.trial].continues
        expected = ends.get(segment.trial, ends.get(previous, 0) if previous is not None else 0)
        assert segment.start == expected
        ends[segment.trial] = segment.stop


def test_a_stopped_trial_is_promoted_later_by_a_trial_that_names_it(bench: Bench) -> None:
    records = bench.run(KnownWorker(bench.model), n_trials=24, seed=3).records()
    by_number = {r.number: r for r in records}
    continuing = [r for r in records if r.continues is not None]
    assert continuing, "with 24 trials some stopped one becomes one of the best of its stratum"
    for record in continuing:
        assert record.continues is not None
        origin = by_number[record.continues]
        assert origin.outcome is Outcome.STOPPED
        assert origin.design == record.design
        assert origin.seed == record.seed
        assert record.examples > origin.examples


def test_over_budget_designs_are_never_trained_and_are_counted(bench: Bench) -> None:
    worker = KnownWorker(bench.model)
    store = bench.run(worker, n_trials=30, limits={"trainable_params": 20_000})
    records = store.records()
    refused = store.fact("n_refused")
    assert refused["trainable_params"] > 0
    infeasible = [r for r in records if r.outcome is Outcome.INFEASIBLE]
    assert 0 < len(infeasible) <= 8, "a capped sample is recorded: a quarter of the trials"
    assert all(r.excess["trainable_params"] > 0 for r in infeasible)
    assert all("20k" in r.reason for r in infeasible)
    assert all(cost(s.design, bench.model).trainable_params <= 20_000 for s in worker.segments)
    assert len(started(records)) == 30


def test_a_budget_that_nothing_meets_ends_with_the_limit(bench: Bench) -> None:
    with pytest.raises(BudgetError, match="trainable_params 800"):
        bench.run(KnownWorker(bench.model), limits={"trainable_params": 800})


def test_designs_that_do_not_fit_the_data_are_refused_with_the_reason(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cost model knows the data: what it refuses is counted and never trained."""

    def fewer_than(n_blocks: int) -> Callable[[CountedCosts, Design], Estimate]:
        def answer(self: CountedCosts, design: Design) -> Estimate:
            if len(design.blocks) >= n_blocks:
                raise DesignError(f"blocks < {n_blocks} must hold; lower training.max_length")
            return cost(design, self.model)

        return answer

    monkeypatch.setattr(CountedCosts, "__call__", fewer_than(2))
    worker = KnownWorker(bench.model)
    store = bench.run(worker, n_trials=12)
    assert store.fact("n_refused")["illegal"] > 0
    assert len(started(store.records())) == 12
    assert all(len(segment.design.blocks) < 2 for segment in worker.segments)


def test_data_that_nothing_fits_end_with_the_reason(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: CountedCosts, design: Design) -> Estimate:
        raise DesignError("it is too long; lower training.max_length")

    monkeypatch.setattr(CountedCosts, "__call__", refuse)
    with pytest.raises(BudgetError, match=r"by illegal: it is too long; lower training.max_length"):
        bench.run(KnownWorker(bench.model))


def test_baselines_train_in_full_first_and_do_not_count(bench: Bench) -> None:
    yardstick = Design.from_dict({"blocks": [{"lora": {"rank": 8, "roles": ["query", "value"]}}]})
    baselines = (
        Baseline(name="yardstick", design=yardstick, learning_rates={"head": 1e-3, "lora": 1e-3}),
        Baseline(name="head", design=Design(), learning_rates={"head": 1e-3}),
    )
    records = bench.run(KnownWorker(bench.model), n_trials=6, baselines=baselines).records()
    assert [r.baseline for r in records[:3]] == ["yardstick", "head", ""]
    assert records[0].outcome is records[1].outcome is Outcome.COMPLETE
    assert records[0].rungs == ()
    assert len(started(records)) == 6


def test_a_yardstick_over_the_budget_is_trained_as_a_reference_and_never_on_the_front(bench: Bench) -> None:
    yardstick = Design.from_dict({"blocks": [{"lora": {"rank": 8, "roles": ["query", "value"]}}]})
    baseline = Baseline(name="yardstick", design=yardstick, learning_rates={"head": 1e-3, "lora": 1e-3})
    limits = {"trainable_params": cost(yardstick, bench.model).trainable_params - 1}
    records = bench.run(KnownWorker(bench.model), n_trials=6, baselines=(baseline,), limits=limits).records()
    assert records[0].outcome is Outcome.COMPLETE
    assert records[0].is_over_budget
    assert records[0] not in pareto_front(records, bench.objectives)
    assert records[0] in compared(records, bench.objectives), "its test score stands beside the front's"
    assert not any(r.is_over_budget for r in started(records)), "designs are held to the budget"


def test_a_yardstick_that_the_device_has_no_room_for_is_left_out(bench: Bench) -> None:
    yardstick = Design.from_dict({"blocks": [{"lora": {"rank": 8, "roles": ["query", "value"]}}]})
    baseline = Baseline(name="yardstick", design=yardstick, learning_rates={"head": 1e-3, "lora": 1e-3})
    estimate = cost(yardstick, bench.model)
    assert baseline.refusal(estimate, None) == baseline.refusal(estimate, estimate.device_bytes) == ""
    assert "and the device has" in baseline.refusal(estimate, estimate.device_bytes - 1)


def test_failures_are_told_apart_and_the_study_goes_on(bench: Bench) -> None:
    kinds = [SegmentStatus.FAILED, SegmentStatus.DONE, SegmentStatus.OUT_OF_MEMORY, SegmentStatus.DIVERGED]
    by_trial: dict[int, SegmentStatus] = {}

    def status(segment: Segment) -> SegmentStatus:
        return by_trial.setdefault(segment.trial, kinds[len(by_trial) % 4])

    records = bench.run(KnownWorker(bench.model, status), n_trials=12).records()
    counts = outcomes(records)
    assert counts[Outcome.FAILED] >= 4
    assert counts[Outcome.OUT_OF_MEMORY] >= 2
    assert counts[Outcome.COMPLETE] >= 1
    failed = next(r for r in records if r.outcome is Outcome.OUT_OF_MEMORY)
    assert "it broke" in failed.reason
    assert "Traceback" in bench.folder.log(failed.number).read_text()


def test_a_fault_that_is_not_the_designs_ends_the_search(bench: Bench) -> None:
    with pytest.raises(SearchError, match=r"5 trials in a row failed.*it broke"):
        bench.run(KnownWorker(bench.model, lambda _: SegmentStatus.FAILED))


def test_stop_on_request_then_resume_loses_nothing_and_repeats_nothing(bench: Bench) -> None:
    whole = Bench(bench.folder.path.parent / "whole", bench.model)
    whole_records = whole.run(KnownWorker(bench.model), n_trials=16).records()
    worker = KnownWorker(bench.model)
    records = bench.run(worker, n_trials=16, should_stop=lambda: len(worker.segments) > 9).records()
    assert outcomes(records)[Outcome.INTERRUPTED] == 1
    assert not outcomes(records)[Outcome.RUNNING]
    before = {r.number: r for r in records if r.outcome is Outcome.COMPLETE}
    again = KnownWorker(bench.model)
    resumed = bench.run(again, n_trials=16).records()
    assert len(started(resumed)) == 16
    assert {n: r for n, r in enumerate(resumed) if n in before} == before
    assert not {s.trial for s in again.segments if s.stage == "train"} & set(before)
    assert not outcomes(resumed)[Outcome.RUNNING]
    assert any(r.continues is not None and r.outcome is not Outcome.INTERRUPTED for r in resumed)
    front = pareto_front(resumed, bench.objectives)
    assert len(front) >= len(pareto_front(whole_records, bench.objectives)) / 2


def test_a_killed_search_leaves_no_running_trial_behind(bench: Bench) -> None:
    class Killed(BaseException):
        pass

    worker = KnownWorker(bench.model)

    def status(_: Segment) -> SegmentStatus:
        if len(worker.segments) == 8:
            raise Killed
        return SegmentStatus.DONE

    worker.status = status
    with pytest.raises(Killed):
        bench.run(worker, n_trials=12)
    assert outcomes(bench.store().records())[Outcome.RUNNING] == 1
    resumed = bench.run(KnownWorker(bench.model), n_trials=12).records()
    assert not outcomes(resumed)[Outcome.RUNNING]
    assert len(started(resumed)) == 12
    killed = next(r for r in resumed if r.reason == "the search was killed")
    assert any(r.continues == killed.number for r in resumed)


def test_the_time_limit_ends_training_with_checkpoints(bench: Bench) -> None:
    worker = KnownWorker(bench.model)
    bench.run(worker, n_trials=1000, timeout=200)
    assert 150 <= bench.clock <= 200 + 45


def test_equal_seeds_give_equal_studies(bench: Bench) -> None:
    other = Bench(bench.folder.path.parent / "other", bench.model)
    records = [b.run(KnownWorker(bench.model), n_trials=14, seed=5).records() for b in (bench, other)]
    assert records[0] == records[1]
    third = Bench(bench.folder.path.parent / "third", bench.model)
    assert third.run(KnownWorker(bench.model), n_trials=14, seed=6).records() != records[0]


def test_the_front_is_scored_once_on_the_test_split(bench: Bench) -> None:
    worker = KnownWorker(bench.model)
    store = bench.run(worker, n_trials=10)
    front = {r.number for r in pareto_front(store.records(), bench.objectives)}
    assert set(read_scores(store)) == front
    again = KnownWorker(bench.model)
    bench.run(again, n_trials=10)
    assert not again.segments


def test_optuna_reads_the_record_without_us(bench: Bench) -> None:
    bench.run(KnownWorker(bench.model), n_trials=10, limits={"trainable_params": 60_000})
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(bench.folder.journal)))
    study = optuna.load_study(study_name="test", storage=storage)
    assert study.metric_names == ["accuracy", "trainable_params"]
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    assert complete
    for trial in complete:
        assert trial.values[1] == trial.user_attrs["estimate"]["trainable_params"]
        assert Design.from_dict(trial.user_attrs["design"]).describe() == trial.user_attrs["summary"]
        assert trial.constraints == {"0": trial.user_attrs["excess"]["trainable_params"]}
    assert any(name.startswith("lora.") for trial in complete for name in trial.params)
