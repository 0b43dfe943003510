"""A search without training: costs and qualities are known functions of the design."""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from autopeft.executors.simulated import Faults, SimulatedExecutor
from autopeft.searching.plan import SearchPlan
from autopeft.searching.runner import Runner
from autopeft.searching.samplers.base import make_sampler
from autopeft.searching.trials import unlearned
from autopeft.spec.cost import Estimate, Measured
from autopeft.spec.design import Design
from autopeft.spec.event import Callback
from autopeft.spec.model import ModelSummary
from autopeft.spec.objective import OBJECTIVES
from autopeft.spec.space import SearchSpace
from autopeft.spec.study import EarlyStopping
from autopeft.spec.trial import Segment, SegmentResult, SegmentStatus
from autopeft.study.folder import StudyFolder
from autopeft.study.store import StudyStore

FULL = 4000


def cost(design: Design, model: ModelSummary) -> Estimate:
    """Count parameters by hand: enough to tell designs apart."""
    n = model.n_head_parameters
    for block in design.blocks:
        size = 1 if block.size_field is None else getattr(block, block.size_field)
        n += 768 * size * len(block.layer_indices(model))
    return Estimate(
        trainable_params=n,
        head_params=model.n_head_parameters,
        adapter_bytes=4 * n,
        base_bytes=4 * model.n_parameters,
        peak_memory=10**8 + 16 * n,
        train_flops=10**12 + n,
        inference_flops=10**6 + n,
        serving=design.serving(model),
        version="test",
    )


class CountedCosts:
    """Answers `cost` on one model."""

    def __init__(self, model: ModelSummary) -> None:
        self.model = model

    def __call__(self, design: Design) -> Estimate:
        return cost(design, self.model)

    def trainable_params(self, design: Design) -> int:
        return cost(design, self.model).trainable_params

    def lower_bound(self, design: Design) -> dict[str, int]:
        return {"trainable_params": self.trainable_params(design)}


class KnownWorker:
    """Answers a segment with a quality that grows with length and size, and a bit of fixed noise."""

    def __init__(self, model: ModelSummary, status: Callable[[Segment], SegmentStatus] | None = None) -> None:
        self.model = model
        self.segments: list[Segment] = []
        self.status = status or (lambda _: SegmentStatus.DONE)

    def run(self, segment: Segment, should_stop: Callable[[], bool]) -> SegmentResult:
        self.segments.append(segment)
        status = self.status(segment)
        if should_stop():
            status = SegmentStatus.INTERRUPTED
        if segment.checkpoint is not None:
            assert segment.checkpoint == f"{segment.design.key}:{segment.start}".encode(), "another trial's checkpoint"
        if segment.stage == "test":
            return SegmentResult(
                trial=segment.trial, status=status, scores={"accuracy": 0.5}, standard_errors={"accuracy": 0.01}
            )
        if status is not SegmentStatus.DONE:
            error = "" if status is SegmentStatus.INTERRUPTED else "Traceback\nValueError: it broke"
            examples = segment.start if status is not SegmentStatus.INTERRUPTED else (segment.start + segment.stop) // 2
            checkpoint = f"{segment.design.key}:{examples}".encode() if status is SegmentStatus.INTERRUPTED else None
            return SegmentResult(
                trial=segment.trial, status=status, examples=examples, checkpoint=checkpoint, error=error
            )
        noise = int(hashlib.sha256(segment.design.key.encode()).hexdigest(), 16) % 1000 / 1e5
        size = math.log10(cost(segment.design, self.model).trainable_params)
        accuracy = 0.5 + 0.05 * size * segment.stop / segment.full + noise
        full = segment.stop >= segment.full
        return SegmentResult(
            trial=segment.trial,
            status=status,
            examples=segment.stop,
            scores={"accuracy": accuracy},
            standard_errors={"accuracy": 0.01},
            measured=Measured(train_seconds=1.0, evaluation_seconds=0.1, n_steps=1, n_tokens=10),
            checkpoint=f"{segment.design.key}:{segment.stop}".encode(),
            artifact={"autopeft.json": b"{}", "adapter.safetensors": b"x"} if full else {},
            predictions=(0.0, 1.0),
        )


SPACE = {
    "blocks": {
        "lora": {
            "use": [True, False],
            "rank": [1, 2, 4, 8, 16],
            "layers": {"last": {"int": [1, "n"]}},
            "learning_rate": {"log": [1e-4, 1e-2]},
        },
        "adapter": {"use": [True, False], "size": [4, 16, 64], "layers": {"same_as": "lora"}},
    },
    "require": {"any_of": ["lora", "adapter"]},
}


class Bench:
    """Runs searches in one folder, over known costs and qualities."""

    def __init__(self, path: Path, model: ModelSummary) -> None:
        self.folder = StudyFolder(path)
        self.model = model
        self.space = SearchSpace.from_dict(SPACE)
        self.objectives = (OBJECTIVES["accuracy"], OBJECTIVES["trainable_params"])

    def store(self) -> StudyStore:
        return StudyStore.create(self.folder.journal, name="test", objectives=self.objectives)

    def run(
        self,
        worker: KnownWorker,
        *,
        n_trials: int = 20,
        n_workers: int = 1,
        timeout: float | None = None,
        limits: dict[str, int] | None = None,
        seed: int = 0,
        sampler: str = "tpe",
        should_stop: Callable[[], bool] = lambda: False,
        halving: EarlyStopping | None = EarlyStopping(),  # noqa: B008
        on_event: Callback = lambda _: None,
        faults: Faults | None = None,
        **plan: object,
    ) -> StudyStore:
        store = self.store()
        proposer = make_sampler(sampler, space=self.space, model=self.model, objectives=self.objectives, seed=seed)
        proposer.update(unlearned(store))
        executor = SimulatedExecutor(
            worker,
            lambda segment: max(1.0, (segment.stop - segment.start) / 100),
            n_workers=n_workers,
            should_stop=should_stop,
            faults=faults,
        )
        self.executor = executor
        loop = Runner(
            SearchPlan(
                objectives=self.objectives,
                metric=self.objectives[0],
                limits=limits or {},
                n_full_examples=FULL,
                n_trials=n_trials,
                timeout_seconds=timeout,
                halving=halving,
                seed=seed,
                **plan,  # type: ignore[arg-type]
            ),
            store=store,
            folder=self.folder,
            sampler=proposer,
            cost_model=CountedCosts(self.model),
            executor=executor,
            should_stop=should_stop,
            on_event=on_event,
        )
        loop.run()
        loop.check_front()
        self.clock = executor.now()
        return store


@pytest.fixture
def bench(tmp_path: Path, summary: ModelSummary) -> Bench:
    """Return a search bench in an empty folder."""
    return Bench(tmp_path / "study", summary)
