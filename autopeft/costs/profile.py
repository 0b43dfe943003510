"""What a layer adds to memory, interval by interval, as a dry run of a model of one layer shows it.

A step is cut into intervals: before the layer, inside of it from one linear map's beginning or end to the next, and
in a map before it multiplies, while it does and afterwards, after the layer (head and loss); in the backward pass the
same ones in reverse, told apart by the place in the forward pass where autograd recorded what it runs. Of each interval
are known what it leaves behind and how far it goes above its start, and which part of both grows with the length of
the sequences: of such intervals the timeline of any number of layers can be put together.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from autopeft.costs.curve import Curve
from autopeft.costs.interval_tracker import IntervalTracker, Record
from autopeft.costs.intervals import Call, Described, Intervals
from autopeft.costs.simulated_step import Machine, SimulatedStep
from autopeft.models.attach import Attached
from autopeft.spec.cost import Workload


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The passes of a step of a model of one layer.

    Attributes:
        curve: [forward, backward, evaluation] x intervals, which are those before, in and after the layer, always in
            the order of the forward pass.
        growth: The part of it that grows with the length of the sequences.
        kept: Bytes of the maps' inputs that autograd keeps after the forward pass, by role; roles that read the same
            storage have the same `sharing`.
        read: Bytes of the maps' inputs, by role.
        diverted: The roles whose maps multiply something else than what comes in: it was changed on the way.
        sharing: The first role that reads the same input, by role.
        input_bytes: Size of the layer's input in the training step, and in the evaluation step.
        input_stays: Whether what comes before the layers holds the first one's input until the last one is done.
        order: Where intervals end, in the order of the forward pass.
        start_bytes: What is there when the training step begins, and when the evaluation step does.
        reads_weights: Whether a map's weights are read besides by the map itself, or train.
        released: The interval in which a map's input goes, by role: in the forward pass, or in the backward pass where
            it is kept.
        records: What both steps did.
    """

    curve: Curve
    growth: Curve
    kept: dict[str, int]
    read: dict[str, int]
    diverted: frozenset[str]
    sharing: dict[str, str]
    released: dict[str, int]
    input_bytes: tuple[int, int]
    input_stays: bool
    order: tuple[str, ...]
    start_bytes: tuple[int, int]
    reads_weights: bool
    records: tuple[Record, Record]

    def scaled(self, ratio: float) -> "Profile":
        """Return what it would be with a block of so many times the size, which was attached with that as a factor.

        What is there when steps begin is left as it is.
        """
        curve, growth = _curves(self.records, ratio)
        return replace(self, curve=curve, growth=growth)

    def does_the_same(self, other: "Profile") -> bool:
        """Return whether two profiles are of a layer that does the same in each interval.

        What is outside of it may differ, and when it goes that was made there.
        """
        facts = [(p.kept, p.read, p.diverted, p.sharing, p.released, p.order, p.input_bytes) for p in (self, other)]
        one, two = self.curve.inside(), other.curve.inside()
        return facts[0] == facts[1] and np.array_equal(one.high, two.high) and np.array_equal(one.flops, two.flops)


def _curves(records: tuple[Record, Record], ratio: float = 1.0) -> tuple[Curve, Curve]:
    """Return the curve of all three passes of two steps, and its growth."""
    training, evaluation = (record.curves(ratio) for record in records)
    curve, growth = (one.joined(other.passes(slice(1))) for one, other in zip(training, evaluation, strict=True))
    return curve, growth


class _Above(torch.autograd.Function):
    """What is above a layer: it reads the hidden states, and hands down a gradient of theirs."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor) -> torch.Tensor:
        ctx.shape, ctx.like = hidden.shape, hidden.new_empty(0)
        return hidden.new_empty(())

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> torch.Tensor:
        gradient: torch.Tensor = ctx.like.new_empty(ctx.shape)
        return gradient


class ProfilingRun(SimulatedStep):
    """A dry run that keeps the curves of the steps that it ran last.

    Attributes:
        calls: How the model called its layer in the training step, and in the evaluation step.
    """

    def __init__(
        self,
        attached: Attached,
        machine: Machine,
        *,
        live: bool,
        order: Sequence[str] | None = None,
        factor: int | None = None,
    ) -> None:
        super().__init__(attached, machine, whole=True)
        self._live = live
        self._order = order
        self._factor = factor
        self._layer = attached.base.summary.layers[0]
        self.calls: tuple[Call, Call]
        self.intervals: Intervals
        self._tracker: IntervalTracker

    def tracker_class(self, **settings: Any) -> IntervalTracker:  # type: ignore[override]
        """Make the tracker of one step; it keeps what it sees itself, and tells nobody."""
        silent = {**settings, "observer": None}
        self._tracker = IntervalTracker(intervals=self.intervals, factor=self._factor, **silent)
        return self._tracker

    def __enter__(self) -> Self:
        """Swap the weights; a model in which nothing trains gets a parameter of no size, so that the step runs."""
        entered = super().__enter__()
        if not self._trainable:
            self._trainable = [nn.Parameter(torch.empty(0))]
        return entered

    def profile(self, workload: Workload) -> Profile:
        """Run both steps at the largest batches."""
        shape = {"n_tokens": workload.max_tokens}
        return self._profile(
            lambda: self.training_events(batch_size=workload.batch_size, **shape),
            lambda: self.evaluation_events(batch_size=workload.evaluation_batch_size, **shape),
        )

    def layer_profile(self, calls: tuple[Call, Call]) -> Profile:
        """Run the layer alone, as the model called it in the training step and in the evaluation step."""
        training, evaluation = calls
        return self._profile(partial(self._train_layer, training), partial(self._evaluate_layer, evaluation))

    def _profile(self, train: Callable[[], object], evaluate: Callable[[], object]) -> Profile:
        training, trained = self._followed(train, live=self._live)
        evaluation, evaluated = self._followed(evaluate, live=False)
        self.calls = training.call, evaluation.call
        records = trained.record(), evaluated.record()
        curve, growth = _curves(records)
        return Profile(
            curve=curve,
            growth=growth,
            kept=training.kept,
            read=training.read,
            diverted=frozenset(training.diverted),
            sharing=training.sharing,
            released=training.released,
            input_bytes=(training.input_bytes, evaluation.input_bytes),
            input_stays=bool(training.input_stays),
            order=tuple(training.order),
            start_bytes=(trained.first_bytes, evaluated.first_bytes),
            reads_weights=training.reads_weights,
            records=records,
        )

    def _followed(self, step: Callable[[], object], *, live: bool) -> tuple[Intervals, IntervalTracker]:
        self.intervals = Intervals(self._model, self._layer, live=live, order=self._order)
        with self.intervals.listening():
            step()
            self._tracker.close()
        return self.intervals, self._tracker

    def _train_layer(self, call: Call) -> None:
        self._model.train()
        forward, given = self._calling(call)
        self._traced(partial(self._train, forward), given, trains=False)

    def _evaluate_layer(self, call: Call) -> None:
        self._model.eval()
        forward, given = self._calling(call)
        self._traced(partial(self._evaluate, forward), given, trains=False)

    def _calling(self, call: Call) -> tuple[Callable[[], torch.Tensor], list[torch.Tensor]]:
        """Return what runs the layer, and something that reads what it makes; and the tensors that it gets."""
        layer: nn.Module = self._model.get_submodule(self._layer.path)
        args, kwargs = tree_map(self._made, (call.args, call.kwargs), is_leaf=_is_described)

        def forward() -> torch.Tensor:
            output = layer(*args, **kwargs)
            scalar: torch.Tensor = _Above.apply(output[0] if isinstance(output, tuple) else output)  # type: ignore[no-untyped-call]
            return scalar

        return forward, [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]

    def _made(self, value: Any) -> Any:
        return value.made(self._device) if _is_described(value) else value


def _is_described(value: Any) -> bool:
    return isinstance(value, Described)
