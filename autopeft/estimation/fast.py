"""The fast path: what designs cost, thousands in a second, once the parts that they are made of have been measured.

Parameters are exact: the sum of what blocks bring, each of which was attached once. Peak memory is put together from
what a dry run of a model of one layer shows each block to add (`autopeft.estimation.layered`); the dry run of the
design itself remains the estimate of record.
"""

import random
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from autopeft.errors import DesignError, ModelError
from autopeft.estimation.estimator import Estimator
from autopeft.estimation.fake_weights import storage_bytes, tensors_of
from autopeft.estimation.layered import LayeredMemory, variant
from autopeft.estimation.optimizers import step_bytes
from autopeft.estimation.parts import Parts, Sizes, without_layers
from autopeft.estimation.quantized import quantize_meta
from autopeft.estimation.shortened import is_uniform, shorten
from autopeft.spec.block import Block, Quantization
from autopeft.spec.design import Design
from autopeft.spec.space import RandomChooser, SearchSpace

MARGIN = 0.05
"""What the fast peak is trusted to, about twice what was seen: nearer to a budget than this, only a dry run decides."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What a design costs, as the fast path says.

    Attributes:
        trainable_params: Every parameter that trains; exact.
        peak_memory: Highest sum of live storage bytes; within `MARGIN` of the dry run's.
        source: `fast`, or `dry run` where the design has parts that the fast path can't put together.
    """

    trainable_params: int
    peak_memory: int
    source: str = "fast"


class FastEstimator:
    """Say what designs cost without attaching them, once their parts are known; called with a design.

    Attributes:
        obstacle: Why every design gets a dry run on this model and machine; empty where the fast path works.

    Designs are not checked: they come from a search space, which does. Parts that were not met in `warm_up` are
    measured when they are met, which takes a fraction of a second for each.
    """

    def __init__(self, estimator: Estimator) -> None:
        """Prepare for designs on the estimator's model, workload and machine."""
        self._full = estimator
        base = estimator.base("none")
        self._n_layers = base.summary.n_layers
        self.obstacle = _obstacle(estimator)
        self._memory: dict[Quantization, LayeredMemory] = {}
        self._layer_bytes: dict[Quantization, int] = {}
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
            return self._dry_run(design)
        try:
            keys = [without_layers(block) for block in design.blocks]
            sizes = self._parts.total(design.blocks, keys)
            peak = self._peak(design, keys, sizes)
        except DesignError:  # what is legal on the model need not be on one of fewer layers
            return self._dry_run(design)
        except ModelError as error:
            self.obstacle = str(error)
            return self._dry_run(design)
        return Costs(trainable_params=int(sizes[0]), peak_memory=int(peak))

    def trainable_params(self, design: Design) -> int:
        """Return how many parameters train, exactly.

        Raises:
            DesignError: The design is illegal on this model.
        """
        if self.obstacle:
            return self._full.trainable_params(design)
        try:
            return int(self._parts.total(design.blocks, [without_layers(block) for block in design.blocks])[0])
        except DesignError:
            return self._full.trainable_params(design)

    def warm_up(self, space: SearchSpace, *, n_designs: int = 300, seed: int = 0) -> int:
        """Measure the parts that random designs of a space are made of; returns how many designs were drawn.

        Blocks are measured at the smallest and at the largest size that was drawn; what lies between is interpolated.
        """
        if self.obstacle:
            return 0
        chooser, summary = RandomChooser(random.Random(seed)), self._full.base("none").summary
        draws = [draw for draw in (space.draw(chooser, summary) for _ in range(n_designs)) if not draw.violation]
        blocks: dict[Hashable, tuple[Quantization, Block]] = {}
        for design in (draw.design for draw in draws):
            for block in design.blocks:
                blocks[design.quantization, without_layers(block)] = design.quantization, block
        groups: defaultdict[Hashable, list[tuple[Quantization, Block]]] = defaultdict(list)
        for pair in sorted(blocks.values(), key=lambda pair: _size(pair[1])):
            groups[pair[0], variant(pair[1])].append(pair)
        ends = [group[end] for end in (-1, 0) for group in groups.values()]
        for quantization, block in (*ends, *blocks.values()):
            if self.obstacle:
                break
            self._learn(quantization, block)
        return len(draws)

    def lower_bound(self, design: Design) -> Mapping[str, int]:
        """Return what the dry run surely says at least; see `autopeft.searching.plan.CostModel`.

        Raises:
            DesignError: The design is illegal on this model.
        """
        costs = self(design)
        surely = 1.0 if costs.source == "dry run" else 1 - MARGIN
        return {"trainable_params": costs.trainable_params, "peak_memory": int(surely * costs.peak_memory)}

    def _learn(self, quantization: Quantization, block: Block) -> None:
        try:
            self._parts.part(block)
            self._over(quantization).learn(block)
        except DesignError:
            return  # designs with this block get a dry run
        except ModelError as error:
            self.obstacle = str(error)

    def _peak(self, design: Design, keys: Sequence[Hashable], sizes: Sizes) -> float:
        memory = self._over(design.quantization)
        training, evaluation = memory.peaks(design.blocks, keys)
        _, added_bytes, kept_bytes = sizes - self._parts.head
        more = int(added_bytes) + self._layer_bytes[design.quantization] * (self._n_layers - 1)
        at_training, at_evaluation = memory.start_bytes
        evaluated = at_evaluation + more + evaluation
        trained = at_training + more + int(kept_bytes) + training if sizes[0] else 0.0
        return max(trained, evaluated)

    def _over(self, quantization: Quantization) -> LayeredMemory:
        """Return what is known of the model in a storage."""
        if quantization not in self._memory:
            machine = self._full.machine
            short = quantize_meta(self._short, quantization, machine.precision)
            self._memory[quantization] = LayeredMemory(short, self._full.workload, machine, self._n_layers)
            rest = storage_bytes(tensors_of(self._full.base(quantization).model)) - storage_bytes(
                tensors_of(short.model)
            )
            self._layer_bytes[quantization] = rest // max(1, self._n_layers - 1)
        return self._memory[quantization]

    def _dry_run(self, design: Design) -> Costs:
        estimate = self._full(design)
        return Costs(trainable_params=estimate.trainable_params, peak_memory=estimate.peak_memory, source="dry run")


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


def _size(block: Block) -> float:
    return float(getattr(block, block.size_field)) if block.size_field else 0.0
