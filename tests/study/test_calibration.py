"""What measured peaks and times teach, alone and in a search under a virtual clock."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from autopeft.errors import BudgetError
from autopeft.spec.cost import Estimate, Measured
from autopeft.spec.design import Design
from autopeft.spec.model import ModelSummary
from autopeft.spec.trial import Outcome, Segment, SegmentResult, SegmentStatus, TrialRecord
from autopeft.study.calibration import Calibration, conformal_bound, memory_ratio
from tests.bench import FULL, Bench, KnownWorker, cost
from tests.conftest import started

RATIO = 1.5
"""Measured over predicted peaks of `Hungry`, but for a little noise."""
LIMITS = {"peak_memory": round(RATIO * (10**8 + 16 * 30_000))}
"""What designs of up to about 30,000 parameters keep, by what `Hungry` measures; by the estimate alone all do."""


class Hungry(KnownWorker):
    """Measures peaks above the predicted ones."""

    def run(self, segment: Segment, should_stop: Callable[[], bool]) -> SegmentResult:
        result = super().run(segment, should_stop)
        peak = round(RATIO * cost(segment.design, self.model).peak_memory) if segment.start == 0 else None
        return replace(result, measured=replace(result.measured, peak_memory=peak))


def make_record(
    number: int,
    *,
    predicted: int = 100,
    measured: int | None = None,
    outcome: Outcome = Outcome.COMPLETE,
    seconds: float = 0.0,
    flops: int = 10**9,
    quantization: str = "none",
    version: str = "test",
    **values: object,
) -> TrialRecord:
    return TrialRecord(
        number=number,
        design=Design(quantization=quantization),  # type: ignore[arg-type]
        learning_rates={},
        seed=0,
        outcome=outcome,
        estimate=make_estimate(predicted, flops=flops, version=version),
        measured=Measured(peak_memory=measured, train_seconds=seconds, n_steps=int(measured is not None)),
        examples=FULL,
        **values,  # type: ignore[arg-type]
    )


def make_estimate(peak: int, *, flops: int = 10**9, version: str = "test", reserved: int | None = None) -> Estimate:
    return Estimate(
        trainable_params=1,
        head_params=1,
        adapter_bytes=4,
        base_bytes=4,
        peak_memory=peak,
        train_flops=flops,
        inference_flops=1,
        serving="merge",
        version=version,
        reserved_memory=reserved,
    )


def calibrated(*records: TrialRecord, **settings: object) -> Calibration:
    calibration = Calibration(n_full_examples=FULL, **settings)  # type: ignore[arg-type]
    for record in records:
        calibration.put(record)
    return calibration


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9])
@pytest.mark.parametrize("n", [9, 10, 19, 30])
def test_the_bound_covers_what_it_promises_and_little_more(n: int, coverage: float) -> None:
    """Of n + 1 exchangeable ratios each is as likely to be the one that is still to come."""
    ratios = np.random.default_rng(n).normal(1.0, 0.1, n + 1).tolist()
    bounds = [conformal_bound(ratios[:i] + ratios[i + 1 :], coverage) for i in range(n + 1)]
    share = np.mean([ratio <= (bound or 0.0) for ratio, bound in zip(ratios, bounds, strict=True)])
    assert coverage <= share <= coverage + 1 / (n + 1)


def test_too_few_ratios_bound_nothing() -> None:
    assert conformal_bound([]) is None
    assert conformal_bound([1.0] * 8) is None
    assert conformal_bound([*([1.0] * 8), 1.3]) == 1.3
    nearly = calibrated(*(make_record(i, measured=200) for i in range(8)))
    assert nearly.memory_bound(make_estimate(1000)) == 1000
    nearly.put(make_record(8, measured=200))
    assert nearly.memory_bound(make_estimate(1000)) == 2000


def test_measurements_never_allow_more_than_the_estimate() -> None:
    calibration = calibrated(*(make_record(i, measured=50) for i in range(20)))
    assert calibration.memory_bound(make_estimate(1000)) == 1000
    assert calibration.excess({"peak_memory": 1000}, make_estimate(1100)) == pytest.approx({"peak_memory": 0.1})


def test_a_chain_and_a_trial_that_changes_count_once() -> None:
    calibration = calibrated(make_record(0, measured=150, outcome=Outcome.STOPPED))
    calibration.put(make_record(1, outcome=Outcome.RUNNING))
    calibration.put(make_record(1, measured=120))
    calibration.put(make_record(2, measured=150, continues=0))
    assert sorted(calibration.memory_ratios("test")) == [1.2, 1.5]


def test_ratios_are_of_one_estimator_of_one_device_and_of_designs() -> None:
    calibration = calibrated(
        make_record(0, measured=900),
        make_record(1, measured=110, version="older"),
        make_record(2, measured=120),
        make_record(3, measured=900, baseline="full"),
        make_record(4, measured=900, continues=0),
        first_trial=1,
    )
    assert calibration.memory_ratios("test") == [1.2]
    assert calibration.memory_ratios("older") == [1.1]
    assert memory_ratio(make_record(0)) is None


def test_what_ran_out_of_memory_rules_out_what_needs_as_much() -> None:
    out = make_record(1, predicted=300, outcome=Outcome.OUT_OF_MEMORY)
    calibration = calibrated(make_record(0, predicted=200, measured=200), out)
    assert calibration.exhausted(make_estimate(299)) is None
    assert calibration.exhausted(make_estimate(300)) == out
    assert calibration.exhausted(make_estimate(299, reserved=400)) == out, "on CUDA what is reserved decides"
    calibration.put(make_record(2, predicted=350, measured=350))
    assert calibration.exhausted(make_estimate(1000)) is None, "a device that held 350 did not fail at 300 by itself"
    assert make_estimate(5).device_bytes == 5


def test_seconds_are_those_of_the_quantization_once_there_are_a_few() -> None:
    assert calibrated().train_seconds(make_estimate(1), "none") is None
    assert calibrated(seconds_per_flop=2e-9).train_seconds(make_estimate(1), "none") == pytest.approx(2.0)
    slow = [make_record(i, seconds=30.0, quantization="nf4") for i in range(3)]
    fast = [make_record(i, seconds=seconds) for i, seconds in ((3, 9.0), (4, 500.0))]
    calibration = calibrated(*slow, *fast, seconds_per_flop=2e-9)
    assert calibration.train_seconds(make_estimate(1, flops=2 * 10**9), "nf4") == pytest.approx(60.0)
    assert calibration.train_seconds(make_estimate(1), "none") == pytest.approx(30.0), "two do not make a speed"
    calibration.put(make_record(5, seconds=11.0))
    assert calibration.train_seconds(make_estimate(1), "none") == pytest.approx(11.0), "an outlier moves no median"


# In a search -----------------------------------------------------------------------------------------------------


def test_the_bound_refuses_what_the_estimate_would_accept(bench: Bench) -> None:
    records = bench.run(Hungry(bench.model), n_trials=20, limits=LIMITS, sampler="random").records()
    trials = started(records)
    assert len(trials) == 20
    fits = [RATIO * r.estimate.peak_memory <= LIMITS["peak_memory"] for r in trials]
    assert not all(fits[:9]), "before nine peaks are measured, the estimate decides"
    assert all(fits[9:])
    refused = [r for r in records if r.outcome is Outcome.INFEASIBLE]
    assert refused
    for record in refused:
        assert record.estimate == cost(record.design, bench.model), "what is recorded is the estimate itself"
        assert record.estimate.peak_memory < LIMITS["peak_memory"]
        assert record.excess["peak_memory"] > 0
        assert "may reach" in record.reason
    assert all(r.excess["peak_memory"] <= 0 for r in trials)


def test_a_resumed_search_has_the_bound_at_once(bench: Bench) -> None:
    before = bench.run(Hungry(bench.model), n_trials=12, limits=LIMITS, sampler="random").records()
    after = bench.run(Hungry(bench.model), n_trials=16, limits=LIMITS, seed=1, sampler="random").records()
    new = started(after)[12:]
    assert len(new) == 4
    assert all(RATIO * r.estimate.peak_memory <= LIMITS["peak_memory"] for r in new)
    assert after[: len(before)] == before


def test_what_another_device_measured_bounds_nothing(bench: Bench) -> None:
    bench.run(Hungry(bench.model), n_trials=12, limits=LIMITS, device="a", sampler="random")
    records = bench.run(Hungry(bench.model), n_trials=24, limits=LIMITS, device="b", seed=1, sampler="random").records()
    fits = [RATIO * r.estimate.peak_memory <= LIMITS["peak_memory"] for r in started(records)[12:]]
    assert not all(fits[:9])
    assert all(fits[9:])


class Small(KnownWorker):
    """A device with too little memory for larger designs."""

    def __init__(self, model: ModelSummary, most: int) -> None:
        super().__init__(model, self._fits)
        self.most = most

    def _fits(self, segment: Segment) -> SegmentStatus:
        over = cost(segment.design, self.model).peak_memory > self.most
        return SegmentStatus.OUT_OF_MEMORY if over else SegmentStatus.DONE


def test_running_out_of_memory_teaches(bench: Bench) -> None:
    store = bench.run(Small(bench.model, 10**8 + 16 * 20_000), n_trials=16, sampler="random")
    out = [r.estimate.peak_memory for r in store.records() if r.outcome is Outcome.OUT_OF_MEMORY]
    assert out
    assert all(later < earlier for earlier, later in pairwise(out))
    assert store.fact("n_refused")["out_of_memory"] > 0
    assert len(started(store.records())) == 16
    again = bench.run(Small(bench.model, 10**8 + 16 * 20_000), n_trials=20, seed=1, sampler="random")
    later = [r for r in started(again.records())[16:] if r.outcome is Outcome.OUT_OF_MEMORY]
    assert all(r.estimate.peak_memory < min(out) for r in later), "a resumed search has learned it too"


def test_a_device_that_holds_nothing_ends_the_search_with_the_way_out(bench: Bench) -> None:
    with pytest.raises(
        BudgetError, match=r"by out_of_memory: trial \d+, predicted to need .* ran out of memory; begin"
    ):
        bench.run(Small(bench.model, 0), n_trials=1000, sampler="random")


def test_a_requirement_of_the_space_is_no_limit_to_raise(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autopeft.searching.proposals.MAX_REFUSALS_IN_A_ROW", 1)
    with pytest.raises(BudgetError, match=r"by requirement: .*; loosen what the space requires"):
        bench.run(KnownWorker(bench.model), n_trials=50)
