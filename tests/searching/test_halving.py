"""The scheduler on random histories, against one that looks at all trials each time."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from autopeft.searching.halving import Halving
from autopeft.searching.plan import Baseline, SearchPlan
from autopeft.searching.rungs import RungEntry
from autopeft.searching.scheduler import Resume, Start
from autopeft.searching.table import TrialTable
from autopeft.spec.design import Design
from autopeft.spec.model import ModelSummary
from autopeft.spec.objective import OBJECTIVES
from autopeft.spec.study import EarlyStopping
from autopeft.spec.trial import Outcome, RungScore, TrialRecord
from tests.bench import FULL, cost
from tests.oracles import chosen_anew

OBJECTIVE_PAIR = (OBJECTIVES["accuracy"], OBJECTIVES["trainable_params"])
RULES = EarlyStopping(rungs=(0.25, 0.5), eta=2.0, strata=3)
N_TRIALS = 25


class World:
    """A search whose results are drawn, and what a scheduler may ask of it."""

    def __init__(self, model: ModelSummary, seed: int, n_workers: int) -> None:
        self.numbers = random.Random(seed)
        self.model, self.n_workers = model, n_workers
        self.plan = SearchPlan(
            objectives=OBJECTIVE_PAIR,
            metric=OBJECTIVE_PAIR[0],
            limits={},
            n_full_examples=FULL,
            n_trials=N_TRIALS,
            halving=RULES,
        )
        self.table = TrialTable(self.plan, ())
        self.scheduler = Halving(self.plan)
        self.baselines: Sequence[Baseline] = ()
        self.can_propose = True
        self.away: set[int] = set()
        self.stopped: list[int] = []

    def has_time(self, record: TrialRecord) -> bool:
        return record.number not in self.away

    def is_here(self, record: TrialRecord) -> bool:
        return True

    def training_seconds(self, record: TrialRecord) -> float:
        return float(record.estimate.trainable_params * (1 + len(record.rungs)) + record.number / 1000)

    def put(self, record: TrialRecord) -> None:
        self.table.put(record)

    def start(self) -> None:
        blocks = [{self.numbers.choice(["lora", "adapter"]): {}}]
        size = self.numbers.choice([1, 2, 4, 8])
        blocks = [{"lora": {"rank": size}}] if self.numbers.random() < 0.6 else [{"prefix": {"length": size}}]
        base = self.numbers.choice(["none", "nf4"])
        design = Design.from_dict({"blocks": blocks, "quantization": base})
        self.put(
            TrialRecord(
                number=len(self.table.records),
                design=design,
                learning_rates={"lora": self.numbers.random()},
                seed=0,
                outcome=Outcome.RUNNING,
                estimate=cost(design, self.model),
            )
        )

    def go_on(self, record: TrialRecord) -> None:
        number = len(self.table.records)
        self.put(replace(record, number=number, outcome=Outcome.RUNNING, continues=record.number))

    def result(self, record: TrialRecord) -> None:
        """Give a running trial its next score, and do what the scheduler says."""
        stops = self.plan.stops(record)
        scores = {"accuracy": self.numbers.choice([0.5, 0.6, 0.7, 0.8]), "loss": self.numbers.random()}
        reached = replace(record, examples=stops[len(record.rungs)], scores=scores)
        if reached.examples == FULL:
            self.put(replace(reached, outcome=Outcome.COMPLETE))
            return
        rung = RungScore(rung=len(record.rungs), examples=reached.examples, scores=scores)
        reached = replace(reached, rungs=(*record.rungs, rung))
        self.put(reached)
        verdict = self.scheduler.on_result(self.table, reached)
        assert verdict.goes_on == (self.table.root(reached) in self.chosen(rung.rung))
        if not verdict.goes_on:
            self.stopped.append(reached.number)
            self.put(replace(reached, outcome=Outcome.STOPPED))

    # The plain scheduler ---------------------------------------------------------------------------------------------

    def chosen(self, rung: int) -> set[int]:
        """Return the roots that may go on from a rung, by every score that there is."""
        entries = {
            self.table.root(record): RungEntry.of(
                record, record.rungs[rung], root=self.table.root(record), metric=self.plan.metric, cost=self.plan.cost
            )
            for record in self.table.records.values()
            if len(record.rungs) > rung
        }
        return chosen_anew(list(entries.values()), RULES)

    def expected(self) -> Resume | Start | None:
        records = self.table.records
        continued = {record.continues for record in records.values()}
        waiting = [records[number] for number in self.stopped if number not in continued]
        for rung in reversed(range(len(RULES.rungs))):
            chosen = self.chosen(rung)
            may = [r for r in waiting if len(r.rungs) == rung + 1 and self.table.root(r) in chosen and self.has_time(r)]
            if may:
                return Resume(record=max(may, key=self.training_seconds) if self.n_workers > 1 else may[0])
        n_started = len({self.table.root(record) for record in records.values() if record.has_started})
        return Start() if n_started < N_TRIALS and self.can_propose else None


@pytest.mark.parametrize("n_workers", [1, 3])
@pytest.mark.parametrize("seed", range(12))
def test_it_says_what_a_look_at_all_trials_says(summary: ModelSummary, seed: int, n_workers: int) -> None:
    world = World(summary, seed, n_workers)
    n_resumed = 0
    for _ in range(150):
        world.can_propose = world.numbers.random() < 0.9
        world.away = {number for number in world.stopped if world.numbers.random() < 0.2}
        job = world.scheduler.next_job(world.table, world)
        assert job == world.expected()
        running = [r for r in world.table.records.values() if r.outcome is Outcome.RUNNING]
        if job is not None and len(running) < n_workers:
            n_resumed += isinstance(job, Resume)
            if isinstance(job, Resume):
                world.go_on(job.record)
            else:
                world.start()
        elif running:
            world.result(world.numbers.choice(running))
    assert n_resumed
    complete = sum(r.outcome is Outcome.COMPLETE for r in world.table.records.values())
    assert complete, "some have trained in full"


def test_baselines_come_before_new_designs(summary: ModelSummary) -> None:
    world = World(summary, 0, 1)
    baseline = Baseline(name="head", design=Design(), learning_rates={})
    world.baselines = (baseline,)
    assert world.scheduler.next_job(world.table, world) == Start(baseline=baseline)
    world.baselines, world.can_propose = (), False
    assert world.scheduler.next_job(world.table, world) is None
    assert world.scheduler.has_work(world.table)
