"""The full training as pure functions of (trial seed, position): which examples each step sees, at which rate.

Nothing here depends on what has run before, so a training cut into segments is the training run at once.
Positions count examples; segments end where a batch ends.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from autopeft.spec.cost import Workload
from autopeft.spec.training import Training
from autopeft.tasks.base import PreparedData
from autopeft.tasks.batches import padded_length

BUCKET_BATCHES = 50
"""Batches that are sorted by length together; more saves padding and makes batches less random."""

Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """One step of the plan.

    Attributes:
        step: Index of the optimizer step in the full training.
        start: Examples trained on before it.
        indices: Examples of the training split.
        n_tokens: Length that each is padded to.
    """

    step: int
    start: int
    indices: Indices
    n_tokens: int

    @property
    def stop(self) -> int:
        """Return the examples trained on after it."""
        return self.start + len(self.indices)


def full_examples(n_train: int, training: Training) -> int:
    """Return the examples of a full training: epochs x training split, at least one."""
    return max(1, round(training.epochs * n_train))


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchPlan:
    """The batches of a full training.

    Attributes:
        lengths: Tokens of each training example.
        full: Examples of the full training.
    """

    lengths: Indices
    max_length: int
    batch_size: int
    full: int
    seed: int

    @classmethod
    def of(cls, data: PreparedData, training: Training, *, seed: int) -> "BatchPlan":
        """Return the plan of a trial."""
        return cls(
            lengths=data.train.lengths,
            max_length=data.max_length,
            batch_size=training.batch_size,
            full=full_examples(len(data.train), training),
            seed=seed,
        )

    @cached_property
    def _steps_per_epoch(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    @property
    def n_steps(self) -> int:
        """Return the optimizer steps of the full training."""
        whole, rest = divmod(self.full, len(self.lengths))
        return whole * self._steps_per_epoch + -(-rest // self.batch_size)

    def epoch(self, epoch: int) -> list[Indices]:
        """Return the batches of one epoch as indices into the training split.

        Examples are shuffled, sorted by length within stretches of `BUCKET_BATCHES` batches, cut into
        batches, and the batches are shuffled. The last epoch is cut where the full training ends. The
        largest batch of epoch 0 comes second: out of memory shows at once, and the peak is measured
        with the optimizer's state in place.
        """
        n = min(len(self.lengths), self.full - epoch * len(self.lengths))
        generator = np.random.default_rng([self.seed, epoch])
        order = generator.permutation(len(self.lengths))[:n]
        bucket = self.batch_size * BUCKET_BATCHES
        batches: list[Indices] = []
        for start in range(0, n, bucket):
            stretch = order[start : start + bucket]
            stretch = stretch[np.argsort(-self.lengths[stretch], kind="stable")]
            batches += [stretch[at : at + self.batch_size] for at in range(0, len(stretch), self.batch_size)]
        batches = [batches[at] for at in generator.permutation(len(batches))]
        if epoch == 0 and len(batches) > 1:
            largest = max(range(len(batches)), key=lambda at: len(batches[at]) * self._padded(batches[at]))
            batches[1], batches[largest] = batches[largest], batches[1]
        return batches

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """Yield the batches from example `start` until at least example `stop` is done.

        Raises:
            ValueError: `start` is not where a batch begins.
        """
        stop = self.full if stop is None else min(stop, self.full)
        first = start // len(self.lengths)
        position, step = first * len(self.lengths), first * self._steps_per_epoch
        for epoch in range(first, math.ceil(self.full / len(self.lengths))):
            for indices in self.epoch(epoch):
                if position >= stop:
                    return
                if position >= start:
                    yield Batch(step=step, start=position, indices=indices, n_tokens=self._padded(indices))
                elif position + len(indices) > start:
                    raise ValueError(
                        f"a segment must start where a batch begins, but got start={start}, batch at {position}"
                    )
                position += len(indices)
                step += 1

    def _padded(self, indices: Indices) -> int:
        return padded_length(int(self.lengths[indices].max()), self.max_length)


def learning_rate_factor(batch: Batch, full: int, training: Training) -> float:
    """Return what the peak learning rate is multiplied with at a step: a function of examples / full alone.

    It is read in the middle of the step, so that neither the first step (warm-up from 0) nor the last
    (decay to 0) is lost.
    """
    progress = (batch.start + batch.stop) / 2 / full
    if progress < training.warmup:
        return progress / training.warmup
    rest = min(1.0, (progress - training.warmup) / (1 - training.warmup))
    if training.schedule == "linear":
        return 1 - rest
    if training.schedule == "cosine":
        return (1 + math.cos(math.pi * rest)) / 2
    return 1.0


def workload(data: PreparedData, training: Training) -> Workload:
    """Return the shapes that a full training and its evaluations make.

    `n_train_tokens` is that of seed 0: with other seeds the padding differs by a few parts in a thousand.
    """
    plan = BatchPlan.of(data, training, seed=0)
    splits = (data.train, data.validation, data.test)
    longest = max(int(split.lengths.max()) for split in splits if len(split))
    return Workload(
        batch_size=min(training.batch_size, len(data.train)),
        evaluation_batch_size=min(training.evaluation_batch_size, max(len(data.validation), len(data.test))),
        max_tokens=padded_length(longest, data.max_length),
        n_steps=plan.n_steps,
        n_examples=plan.full,
        n_train_tokens=sum(len(batch.indices) * batch.n_tokens for batch in plan.batches()),
    )
