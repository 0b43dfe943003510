import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.spec.training import Training
from autopeft.tasks.base import PreparedData
from autopeft.training.plan import Batch, BatchPlan, full_examples, learning_rate_factor, padded_length, workload


def make_plan(n: int, batch_size: int, epochs: float, seed: int) -> BatchPlan:
    lengths = np.random.default_rng(seed).integers(3, 60, n)
    return BatchPlan(lengths=lengths, max_length=60, batch_size=batch_size, full=max(1, round(epochs * n)), seed=seed)


plans = st.builds(make_plan, st.integers(1, 300), st.integers(1, 40), st.floats(0.3, 3.0), st.integers(0, 50))


@given(plan=plans)
def test_every_epoch_sees_every_example_once(plan: BatchPlan) -> None:
    batches = list(plan.batches())
    n = len(plan.lengths)
    seen = np.concatenate([batch.indices for batch in batches])
    assert len(seen) == plan.full
    for epoch in range(plan.full // n):
        assert sorted(seen[epoch * n : (epoch + 1) * n]) == list(range(n))
    rest = seen[plan.full // n * n :]
    assert len(set(rest)) == len(rest)
    assert plan.n_steps == len(batches)
    assert [batch.step for batch in batches] == list(range(len(batches)))
    assert all(plan.lengths[batch.indices].max() <= batch.n_tokens <= plan.max_length for batch in batches)


@given(plan=plans, cuts=st.lists(st.floats(0, 1), max_size=4))
def test_segments_see_the_batches_of_one_run(plan: BatchPlan, cuts: list[float]) -> None:
    whole = [(b.step, b.start, b.n_tokens, b.indices.tolist()) for b in plan.batches()]
    position, pieces = 0, []
    for stop in [*sorted(round(cut * plan.full) for cut in cuts), plan.full]:
        for batch in plan.batches(position, stop):
            pieces.append((batch.step, batch.start, batch.n_tokens, batch.indices.tolist()))
            position = batch.stop
    assert pieces == whole


@given(plan=plans)
def test_the_largest_batch_of_the_first_epoch_comes_second(plan: BatchPlan) -> None:
    n_first = min(plan.full, len(plan.lengths))
    sizes = [len(batch.indices) * batch.n_tokens for batch in plan.batches(0, n_first)]
    assert len(sizes) == 1 or sizes[1] == max(sizes)


def test_buckets_save_padding_and_batches_stay_random() -> None:
    plan = make_plan(2000, 16, 2, 3)
    padded = sum(len(batch.indices) * batch.n_tokens for batch in plan.batches())
    real = 2 * plan.lengths.sum()
    unsorted = np.random.default_rng(0).permutation(2000).reshape(-1, 16)
    unbucketed = 2 * sum(16 * plan.lengths[batch].max() for batch in unsorted)
    assert padded < 1.2 * real < unbucketed
    first, second = ([batch.indices[0] for batch in plan.batches(e * 2000, (e + 1) * 2000)] for e in (0, 1))
    assert first != second
    longest = [batch.n_tokens for batch in plan.batches(0, 2000)]
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.3, "lengths come in random order"


def test_a_start_inside_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="start=5"):
        list(make_plan(100, 8, 1, 0).batches(5))


@pytest.mark.parametrize(("longest", "limit", "expected"), [(9, 512, 16), (16, 512, 16), (49, 50, 50), (50, 50, 50)])
def test_padding_stays_within_the_limit(longest: int, limit: int, expected: int) -> None:
    assert padded_length(longest, limit) == expected


@pytest.mark.parametrize(
    ("schedule", "middle", "end"), [("linear", 0.5, 0.005), ("cosine", 0.5, 0.0002), ("constant", 1.0, 1.0)]
)
def test_the_schedule_by_hand(schedule: str, middle: float, end: float) -> None:
    training = Training(schedule=schedule, warmup=0.2)

    def factor(start: int) -> float:
        return learning_rate_factor(Batch(step=0, start=start, indices=np.arange(2), n_tokens=8), 200, training)

    assert factor(0) == pytest.approx(1 / 200 / 0.2)
    assert factor(19) == pytest.approx(20 / 200 / 0.2)
    assert factor(39) == pytest.approx(1.0)
    assert factor(119) == pytest.approx(middle)
    assert factor(198) == pytest.approx(
        end if schedule == "constant" else {"linear": 1 / 160, "cosine": (1 + np.cos(np.pi * 159 / 160)) / 2}[schedule]
    )


def test_the_workload_is_what_the_plan_does(data: PreparedData, training: Training) -> None:
    found = workload(data, training)
    batches = list(BatchPlan.of(data, training, seed=0).batches())
    assert found.n_examples == full_examples(90, training) == 225
    assert found.n_steps == len(batches) == 12 + 12 + 6
    assert found.n_train_tokens == sum(len(batch.indices) * batch.n_tokens for batch in batches)
    longest = max(int(split.lengths.max()) for split in (data.train, data.validation, data.test))
    assert found.max_tokens == padded_length(longest, data.max_length)
    assert (found.batch_size, found.evaluation_batch_size) == (8, 16)
    large = training.model_copy(update={"evaluation_batch_size": 1000})
    assert workload(data, large).evaluation_batch_size == len(data.test) == 50, "the test split is scored as well"
