"""Trials that were cut short: the order in which they go on, and what it takes to find the next of thousands."""

import random
from collections.abc import Callable

import pytest

from autopeft.searching.halving import Halving
from autopeft.searching.plan import SearchPlan
from autopeft.searching.scheduler import Resume
from autopeft.searching.segments import Segments
from autopeft.searching.table import TrialTable
from autopeft.spec.cost import Measured
from autopeft.spec.design import Design
from autopeft.spec.objective import OBJECTIVES
from autopeft.spec.trial import Outcome, Segment, SegmentResult, TrialRecord
from tests.bench import FULL, Bench, KnownWorker, cost


def cut_short(bench: Bench, number: int, numbers: random.Random, **changes: object) -> TrialRecord:
    quantization = numbers.choice(["none", "int8", "nf4"])
    blocks = [{"lora": {"rank": numbers.choice([1, 2, 4, 8]), "roles": ["query"]}}]
    design = Design.from_dict({"blocks": blocks, "quantization": quantization})
    values: dict[str, object] = {
        "number": number,
        "design": design,
        "learning_rates": {"head": 1e-3, "lora": numbers.random()},
        "seed": 0,
        "outcome": Outcome.INTERRUPTED,
        "estimate": cost(design, bench.model),
        "examples": numbers.choice([0, 500, 1500, 3500]),
    }
    return TrialRecord(**{**values, **changes})  # type: ignore[arg-type]


class Many:
    """Trials that wait, what is asked of them, and how often one of them was looked at."""

    def __init__(self, bench: Bench, records: list[TrialRecord], *, longest_first: bool) -> None:
        objectives = (OBJECTIVES["accuracy"], OBJECTIVES["trainable_params"])
        plan = SearchPlan(
            objectives=objectives, metric=objectives[0], limits={}, n_full_examples=FULL, n_trials=99, halving=None
        )
        self.table = TrialTable(plan, tuple(records))
        self.segments = Segments(plan, driver="", folder=bench.folder, table=self.table, clock=None)  # type: ignore[arg-type]
        self.scheduler = Halving(plan)
        self.n_workers = 2 if longest_first else 1
        self.baselines = ()
        self.can_propose = False

    def has_time(self, record: TrialRecord) -> bool:
        return True

    def is_here(self, record: TrialRecord) -> bool:
        return self.segments.is_here(record)

    def training_seconds(self, record: TrialRecord) -> float:
        return self.segments.seconds_left_of(record)

    def take(self) -> TrialRecord | None:
        job = self.scheduler.next_job(self.table, self)
        assert job is None or isinstance(job, Resume)
        return None if job is None else job.record

    def continue_(self, record: TrialRecord, **changes: object) -> None:
        number = len(self.table.records)
        self.table.put(
            TrialRecord(
                **{**vars(record), "number": number, "continues": record.number, "outcome": Outcome.RUNNING, **changes}
            )
        )


@pytest.mark.parametrize("longest_first", [True, False])
def test_the_next_one_is_what_a_look_at_all_of_them_says(bench: Bench, longest_first: bool) -> None:
    """Also while what a FLOP takes changes, and while another driver goes on with some."""
    numbers = random.Random(3)
    many = Many(bench, [cut_short(bench, i, numbers) for i in range(60)], longest_first=longest_first)
    waiting = [r for r in many.table.records.values() if r.number < 60]
    while waiting:
        expected = max(waiting, key=many.segments.seconds_left_of) if longest_first else waiting[0]
        taken = many.take()
        if not any(record.measured.n_steps for record in many.table.records.values()):
            assert taken in waiting  # nothing is timed, and nothing is known to be longer
        else:
            assert taken is not None
            assert many.segments.seconds_left_of(taken) == pytest.approx(many.segments.seconds_left_of(expected))
        assert taken is not None
        waiting.remove(taken)
        measured = Measured(train_seconds=numbers.uniform(1, 100), evaluation_seconds=1, n_steps=1, n_tokens=1)
        many.continue_(taken, measured=measured, examples=FULL)
        if waiting and numbers.random() < 0.2:
            many.continue_(waiting.pop(numbers.randrange(len(waiting))))
    assert many.take() is None


def test_what_another_driver_left_without_files_here_waits_apart(bench: Bench) -> None:
    numbers = random.Random(0)
    records = [cut_short(bench, i, numbers, driver="another" if i % 2 else "", examples=500) for i in range(6)]
    records.append(cut_short(bench, 6, numbers, driver="another", examples=0))  # it made no step: it needs no file
    bench.folder.checkpoints.save(3, 500, b"of another driver, in the same folder")
    many = Many(bench, records, longest_first=False)
    assert [r.number for r in iter(many.take, None)] == [0, 2, 3, 4, 6, 1, 5]  # what is not here comes last


def test_each_of_thousands_is_looked_at_a_few_times(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    n, n_looks, numbers = 3000, 0, random.Random(1)
    many = Many(bench, [cut_short(bench, i, numbers) for i in range(n)], longest_first=True)
    for owner, name in ((Segments, "seconds_left_of"), (Segments, "is_here"), (TrialTable, "is_interrupted")):
        plain: Callable[..., object] = getattr(owner, name)

        def counted(self: object, record: TrialRecord, plain: Callable[..., object] = plain) -> object:
            nonlocal n_looks
            n_looks += 1
            return plain(self, record)

        monkeypatch.setattr(owner, name, counted)
    while (record := many.take()) is not None:
        many.continue_(record)
    assert n <= n_looks <= 10 * n


def test_a_search_that_was_killed_with_many_running_goes_on_with_all_of_them(bench: Bench) -> None:
    class Killed(BaseException):
        pass

    class Fragile(KnownWorker):
        def run(self, segment: Segment, should_stop: Callable[[], bool]) -> SegmentResult:
            if len(self.segments) == 35:
                raise Killed
            return super().run(segment, should_stop)

    with pytest.raises(Killed):
        bench.run(Fragile(bench.model), n_trials=40, n_workers=30, halving=None, sampler="random")
    records = bench.run(
        KnownWorker(bench.model), n_trials=40, n_workers=30, halving=None, sampler="random", seed=1
    ).records()
    cut = [r.number for r in records if r.outcome is Outcome.INTERRUPTED]
    assert len(cut) >= 10
    assert sorted(r.continues for r in records if r.continues is not None) == cut
    assert sum(r.outcome is Outcome.COMPLETE for r in records) == 40
