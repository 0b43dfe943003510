"""What fits a memory: which batches, over which storage of the base, and how much of each space."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from autopeft.costs.costing import Costing
from autopeft.costs.model_costs import ModelCosts
from autopeft.costs.sample import Progress, draws, median
from autopeft.costs.setting import Setting
from autopeft.errors import DesignError, SpaceError
from autopeft.spec.block import Quantization
from autopeft.spec.choices import Choice
from autopeft.spec.cost import Estimate
from autopeft.spec.design import Design
from autopeft.spec.space import SearchSpace
from autopeft.spec.unsupported import leave_out_unsupported
from autopeft.spec.yardstick import DEFAULT_YARDSTICK, fit_yardstick

STORAGES: tuple[Quantization, ...] = ("none", "int8", "nf4")
"""How the base may be stored; `fp4` takes the bytes of `nf4`, and `nf4-dq` nearly so."""
MAX_BATCH_SIZE = 1024
"""No larger batch is tried."""
PROBE_BATCH_SIZE = 4
"""Memory at this batch and at one example says roughly what an example takes."""
N_SAMPLES = 200
"""Random designs of a space that are held against the memory, for each storage of the base."""
SAMPLE_SECONDS = 10.0
"""They are fewer where dry runs must decide and these seconds have gone by; at least one is estimated."""


@dataclass(frozen=True, kw_only=True)
class LargestBatch:
    """The largest power of two of examples with which a design fits.

    Attributes:
        batch_size: 0 where not even one example fits.
        memory_bytes: Needed at that batch, or at one example where none fits.
    """

    design: Design
    batch_size: int
    memory_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        return {
            "design": self.design.to_dict(),
            "batch_size": self.batch_size,
            "memory_bytes": self.memory_bytes,
        }


@dataclass(frozen=True, kw_only=True)
class SpaceFit:
    """How much of a space fits, over one storage of the base.

    Attributes:
        n_sampled: Random legal designs that were estimated at the batch size of the setting.
        n_fitting: How many of them fit.
        smallest: The largest batch of the design that trains the fewest parameters.
        typical: That of the median of the random designs by memory.
    """

    space: str
    quantization: Quantization
    n_sampled: int
    n_fitting: int
    smallest: LargestBatch
    typical: LargestBatch

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        return {
            "space": self.space,
            "quantization": self.quantization,
            "n_sampled": self.n_sampled,
            "n_fitting": self.n_fitting,
            "smallest": self.smallest.to_dict(),
            "typical": self.typical.to_dict(),
        }


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What fits a memory on one model.

    Attributes:
        memory_bytes: The memory.
        setting: How designs would be trained; the batch size is that of the shares.
        designs: The largest batches of the head alone, where there is one to train, and of the default LoRA, for each
            storage of the base.
        spaces: How much of each space fits, for each storage that it asks for.
        refused: Spaces that are illegal on this model, with the reason.
    """

    memory_bytes: int
    setting: Setting
    designs: tuple[LargestBatch, ...]
    spaces: tuple[SpaceFit, ...]
    refused: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        return {
            "memory_bytes": self.memory_bytes,
            "batch_size": self.setting.batch_size,
            "designs": [design.to_dict() for design in self.designs],
            "spaces": [space.to_dict() for space in self.spaces],
            "refused": dict(self.refused),
        }


def largest_batch_size(bytes_at: Callable[[int], int], memory_bytes: int) -> int:
    """Return the largest power of two, up to `MAX_BATCH_SIZE`, whose memory fits; 0 where that of 1 does not.

    Two batch sizes say about what an example takes, and the answer is searched from there: what is returned was
    asked for, and so was its double.

    Args:
        bytes_at: Memory at a batch size; it must not fall as batches grow.
        memory_bytes: What is there.
    """
    at_one = bytes_at(1)
    if at_one > memory_bytes:
        return 0
    an_example = max(1.0, (bytes_at(PROBE_BATCH_SIZE) - at_one) / (PROBE_BATCH_SIZE - 1))
    guess = 1 + (memory_bytes - at_one) / an_example
    batch_size = 1 << (int(min(guess, MAX_BATCH_SIZE)).bit_length() - 1)
    while batch_size > 1 and bytes_at(batch_size) > memory_bytes:
        batch_size //= 2
    while 2 * batch_size <= MAX_BATCH_SIZE and bytes_at(2 * batch_size) <= memory_bytes:
        batch_size *= 2
    return batch_size


def fit(
    costs: ModelCosts,
    memory_bytes: int,
    setting: Setting,
    *,
    spaces: Sequence[SearchSpace],
    seed: int = 0,
    progress: Progress = lambda *_: None,
) -> Fit:
    """Say what fits a memory: the largest batches of known designs, and how much of each space.

    Args:
        costs: Of the model.
        memory_bytes: What is there.
        setting: How designs would be trained.
        spaces: Which spaces to ask about.
        seed: Of the random designs.
        progress: Told before each part.

    Raises:
        DesignError: The sequences are too long for the model.
    """
    legal, refused = _legal_spaces(costs, spaces)
    known = _known_designs(costs, setting)
    costing = Costing(costs.at(setting), limits={"peak_memory": memory_bytes})
    asked = [(space, quantization) for space in legal for quantization in _quantizations(space)]
    n_parts = len(known) + len(asked)
    designs = []
    for index, design in enumerate(known):
        progress(f"largest batch of {design.describe()}", index, n_parts)
        designs.append(_largest_batch(costs, design, memory_bytes, setting))
    fits = []
    for index, (space, quantization) in enumerate(asked, start=len(known)):
        progress(f"{space.name}, base {quantization}", index, n_parts)
        if found := _fit_space(costs, costing, space, quantization, memory_bytes, setting, seed):
            fits.append(found)
    return Fit(memory_bytes=memory_bytes, setting=setting, designs=tuple(designs), spaces=tuple(fits), refused=refused)


def _legal_spaces(costs: ModelCosts, spaces: Sequence[SearchSpace]) -> tuple[list[SearchSpace], dict[str, str]]:
    """Return the spaces that are legal on the model, and why the others are not."""
    legal, refused = [], {}
    for space in spaces:
        possible, _ = leave_out_unsupported(space, costs.summary)
        try:
            possible.check(costs.summary)
            legal.append(possible)
        except SpaceError as error:
            refused[space.name] = str(error)
    return legal, refused


def _known_designs(costs: ModelCosts, setting: Setting) -> list[Design]:
    """Return the head alone, where it trains, and the default LoRA, each over every storage of the base."""
    default = fit_yardstick(DEFAULT_YARDSTICK, costs.summary)
    estimator = costs.at(setting)
    made = []
    for blocks in ((), default.blocks if default else ()):
        for quantization in STORAGES:
            design = Design(blocks=blocks, quantization=quantization).resolve(costs.summary)
            if _is_legal(costs, design) and (blocks or estimator.trainable_params(design)):
                made.append(design)
    return made


def _is_legal(costs: ModelCosts, design: Design) -> bool:
    try:
        design.check(costs.summary)
    except DesignError:
        return False
    return True


def _quantizations(space: SearchSpace) -> tuple[Quantization, ...]:
    assert isinstance(space.quantization, Choice), "a storage is a word, not a number"
    return space.quantization.options


def _largest_batch(costs: ModelCosts, design: Design, memory_bytes: int, setting: Setting) -> LargestBatch:
    def bytes_at(batch_size: int) -> int:
        return costs.cost(design, replace(setting, batch_size=batch_size)).device_bytes

    batch_size = largest_batch_size(bytes_at, memory_bytes)
    return LargestBatch(design=design, batch_size=batch_size, memory_bytes=bytes_at(max(1, batch_size)))


def _fit_space(
    costs: ModelCosts,
    costing: Costing,
    space: SearchSpace,
    quantization: Quantization,
    memory_bytes: int,
    setting: Setting,
    seed: int,
) -> SpaceFit | None:
    """Return how much of a space fits over one storage of the base; None where it has no legal design there."""
    pinned = replace(space, quantization=Choice((quantization,)))
    sampled = list(_estimates(costs, costing, pinned, memory_bytes, setting, seed))
    candidates = pinned.smallest(costs.summary)
    if not sampled or not candidates:
        return None
    smallest = min(candidates, key=costs.at(setting).trainable_params)
    return SpaceFit(
        space=space.name,
        quantization=quantization,
        n_sampled=len(sampled),
        n_fitting=sum(estimate.device_bytes <= memory_bytes for _, estimate in sampled),
        smallest=_largest_batch(costs, smallest, memory_bytes, setting),
        typical=_largest_batch(costs, median(sampled)[0], memory_bytes, setting),
    )


def _estimates(
    costs: ModelCosts, costing: Costing, space: SearchSpace, memory_bytes: int, setting: Setting, seed: int
) -> Iterator[tuple[Design, Estimate]]:
    """Estimate random legal designs, until they are enough or `SAMPLE_SECONDS` have gone by."""
    designs = [draw.design for draw in draws(space, costs, N_SAMPLES, seed) if not draw.violation]
    with costs.explaining():
        costing.learn(designs, lambda *_: None)  # which part of the answer is in the making is told already
    started, on_cuda = time.monotonic(), setting.device == "cuda"
    for design in designs:
        try:
            with costs.explaining():
                estimate = costing.decide(design)
                if on_cuda and estimate.reserved_memory is None and estimate.peak_memory <= memory_bytes:
                    # What the allocator holds, never less than the tensors, is known from a dry run alone.
                    estimate = costing(design)
        except DesignError:
            continue
        if estimate.trainable_params:
            yield design, estimate
        if time.monotonic() - started > SAMPLE_SECONDS:
            return
