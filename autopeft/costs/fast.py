"""The fast path: what designs cost, thousands in a second, once the parts that they are made of have been measured.

Parameters and the bytes of exports are exact: the sum of what blocks bring, each of which was attached once.
Peak memory and FLOPs are put together from what a dry run of a model of one layer shows each block to add
(`autopeft.costs.layered`). What is to be decided by them goes through `autopeft.costs.costing`.
"""

import gc
import random
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from autopeft.costs.estimator import Estimator, full_training_flops, stored_bytes
from autopeft.costs.fake_weights import storage_bytes, tensors_of
from autopeft.costs.layered import LayeredMemory, Steps
from autopeft.costs.optimizers import step_bytes
from autopeft.costs.parts import Parts, Sizes, variant, without_layers
from autopeft.costs.quantized import quantize_meta
from autopeft.costs.shortened import is_uniform, shorten
from autopeft.errors import DesignError, ModelError
from autopeft.models.base import Base
from autopeft.spec.block import Block, Quantization
from autopeft.spec.cost import Estimate
from autopeft.spec.design import Design
from autopeft.spec.space import RandomChooser, SearchSpace

VERSION = "fast-2"
"""Changes whenever an answer may."""
FAST, DRY_RUN = "fast", "dry run"

Progress = Callable[[int, int], None]
"""Told how many parts are measured, and of how many."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What a design costs, as the fast path says; each is that of `autopeft.Estimate`.

    Attributes:
        source: `fast`, or `dry run` where the fast path can't put the design together.
        reason: Why it can't; empty where it can.
    """

    trainable_params: int
    adapter_bytes: int
    peak_memory: int
    step_flops: int
    train_flops: int
    inference_flops: int
    source: str = FAST
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """One storage of the base.

    Attributes:
        memory: What steps of designs over it take.
        layer_bytes: Of a layer.
        writing_bytes: The peak of writing samples with nothing attached; 0 where the model writes none. What blocks
            need for a moment while it writes is left out: a few prompts are far from what training needs.
    """

    memory: LayeredMemory
    layer_bytes: int
    writing_bytes: int


class FastEstimator:
    """Say what designs cost without attaching them, once their parts are known; called with a design.

    Attributes:
        obstacle: Why every design gets a dry run on this model and machine; empty where the fast path works.

    Designs are not checked: they come from a search space, which does. Parts that `learn` did not meet are measured
    when they are met, which takes a fraction of a second for each.
    """

    version = VERSION

    def __init__(self, estimator: Estimator) -> None:
        """Prepare for designs on the estimator's model, workload and machine."""
        self._full = estimator
        base = estimator.base("none")
        self._summary = base.summary
        self.obstacle = _obstacle(estimator)
        self._storages: dict[Quantization, _Stored] = {}
        self._impossible: dict[Hashable, str] = {}
        if not self.obstacle:
            self._parts = Parts(base, estimator.machine)
            self._short = shorten(base, 1)

    def __call__(self, design: Design) -> Costs:
        """Return the cost of a legal design.

        Raises:
            DesignError: The design leaves the longest input too few positions.
        """
        self._full.check(design)
        if self.obstacle:
            return self._dry_run(design, self.obstacle)
        try:
            keys = [without_layers(block) for block in design.blocks]
            sizes = self._parts.total(design.blocks, keys)
            stored = self._stored(design.quantization)
            steps = stored.memory.steps(design.blocks, keys)
        except DesignError as error:  # what is legal on the model need not be on one of fewer layers
            return self._dry_run(design, str(error))
        except (ModelError, RuntimeError) as error:
            self.obstacle = str(error)
            return self._dry_run(design, self.obstacle)
        return self._costs(design, sizes, stored, steps)

    def trainable_params(self, design: Design) -> int:
        """Return how many parameters train, exactly.

        Raises:
            DesignError: The design is illegal on this model.
        """
        if self.obstacle:
            return self._full.trainable_params(design)
        try:
            return self._parts.total(design.blocks, [without_layers(block) for block in design.blocks]).n_params
        except DesignError:
            return self._full.trainable_params(design)

    def estimate(self, design: Design) -> Estimate:
        """Return the cost of a design in the form of a dry run's; what memory is for at the peak is not in it.

        Raises:
            DesignError: The design leaves the longest input too few positions.
        """
        costs = self(design)
        if costs.source == DRY_RUN:
            return self._full(design)
        return Estimate(
            trainable_params=costs.trainable_params,
            head_params=self._parts.head.n_params,
            adapter_bytes=costs.adapter_bytes,
            base_bytes=stored_bytes(self._full.base(design.quantization)),
            peak_memory=costs.peak_memory,
            step_flops=costs.step_flops,
            train_flops=costs.train_flops,
            inference_flops=costs.inference_flops,
            serving=design.serving(self._summary),
            version=VERSION,
        )

    def draw(self, space: SearchSpace, *, n_designs: int = 300, seed: int = 0) -> list[Design]:
        """Return random designs of a space, whose parts are nearly all that it has; those that are illegal not."""
        chooser = RandomChooser(random.Random(seed))
        drawn = (space.draw(chooser, self._summary) for _ in range(n_designs))
        return [draw.design for draw in drawn if not draw.violation]

    def learn(self, designs: Iterable[Design], progress: Progress = lambda *_: None) -> None:
        """Measure the parts that designs are made of.

        Blocks are measured at their smallest and at their largest size; what lies between is interpolated.
        """
        blocks: dict[Hashable, tuple[Quantization, Block]] = {}
        for design in () if self.obstacle else designs:
            for block in design.blocks:
                blocks[design.quantization, without_layers(block)] = design.quantization, block
        groups: defaultdict[Hashable, list[tuple[Quantization, Block]]] = defaultdict(list)
        for pair in sorted(blocks.values(), key=lambda pair: _size(pair[1])):
            groups[pair[0], _family(pair[1])].append(pair)
        ends = [group[end] for end in (-1, 0) for group in groups.values()]
        parts = [*ends, *blocks.values()]
        with _uncollected():
            for number, (quantization, block) in enumerate(parts):
                if self.obstacle:
                    break
                progress(number, len(parts))
                self._learn(quantization, block)

    def knows(self, design: Design) -> bool:
        """Return whether every part of a design was measured, so that its cost takes no more than its sum."""
        keys = [without_layers(block) for block in design.blocks]
        stored = self._storages.get(design.quantization)
        return stored is not None and all(
            self._parts.knows(key) and stored.memory.knows(block, key)
            for block, key in zip(design.blocks, keys, strict=True)
        )

    def _learn(self, quantization: Quantization, block: Block) -> None:
        key = without_layers(block)
        try:
            self._stored(quantization).memory.learn(block, key)
            self._parts.part(block, key)
        except DesignError:
            return  # designs with this block get a dry run
        except (ModelError, RuntimeError) as error:
            self.obstacle = str(error)

    def _costs(self, design: Design, sizes: Sizes, stored: _Stored, steps: Steps) -> Costs:
        head, n_params = self._parts.head, sizes.n_params
        more = sizes.n_bytes - head.n_bytes + stored.layer_bytes * (self._summary.n_layers - 1)
        at_training, at_evaluation = stored.memory.start_bytes
        peak = at_evaluation + more + steps.evaluation_bytes
        if stored.writing_bytes:
            peak = max(peak, stored.writing_bytes + sizes.n_bytes - head.n_bytes)
        if n_params:
            peak = max(peak, at_training + more + sizes.kept_bytes - head.kept_bytes + steps.training_bytes)
        flops, attention_flops = map(round, steps.training_flops if n_params else (0.0, 0.0))
        workload = self._full.workload
        return Costs(
            trainable_params=n_params,
            adapter_bytes=sizes.exported_bytes,
            peak_memory=int(peak),
            step_flops=flops,
            train_flops=full_training_flops(flops, attention_flops, workload, design),
            inference_flops=int(steps.evaluation_flops) // workload.evaluation_batch_size,
        )

    def _stored(self, quantization: Quantization) -> _Stored:
        """Return what is known of the model in a storage."""
        if quantization not in self._storages:
            machine = self._full.machine
            short = quantize_meta(self._short, quantization, machine.precision)
            like = None if quantization == "none" else self._stored("none").memory
            see = self._parts.see if like is None else lambda *_: None
            memory = LayeredMemory(short, self._full.workload, machine, self._summary.n_layers, like, see)
            rest = _bytes(self._full.base(quantization)) - _bytes(short)
            layer_bytes = rest // max(1, self._summary.n_layers - 1)
            writing = self._full.generation(Design(quantization=quantization))
            writing_bytes = 0 if writing is None else writing.peak_bytes
            self._storages[quantization] = _Stored(memory=memory, layer_bytes=layer_bytes, writing_bytes=writing_bytes)
        return self._storages[quantization]

    def _dry_run(self, design: Design, reason: str) -> Costs:
        estimate = self._full(design)
        return Costs(
            trainable_params=estimate.trainable_params,
            adapter_bytes=estimate.adapter_bytes,
            peak_memory=estimate.peak_memory,
            step_flops=estimate.step_flops,
            train_flops=estimate.train_flops,
            inference_flops=estimate.inference_flops,
            source=DRY_RUN,
            reason=reason,
        )


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep Python from looking for circles of objects: models that come and go make it look at all that there is."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _obstacle(estimator: Estimator) -> str:
    """Return why designs on this model can't be put together from layers, or an empty string."""
    base, machine = estimator.base("none"), estimator.machine
    if base.summary.is_encoder_decoder or not is_uniform(base):
        return "the layers of the model are not all alike"
    if machine.checkpointing:
        return "layers compute their activations again in the backward pass"
    if step_bytes(machine.optimizer, (1,), device=machine.device):
        return f"a step of {machine.optimizer} needs memory of its own on a {machine.device}"
    return ""


def _bytes(base: Base) -> int:
    return storage_bytes(tensors_of(base.model))


def _family(block: Block) -> Hashable:
    """Return what blocks have in common whose parts are told from the same two: their size may differ, and the maps."""
    return variant(block.model_copy(update={"roles": "all"}) if hasattr(block, "roles") else block)


def _size(block: Block) -> float:
    return float(getattr(block, block.size_field)) if block.size_field else 0.0
