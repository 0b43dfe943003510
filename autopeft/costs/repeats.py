"""Layers that repeat: found by their structure, and run as a few of them.

Where a stack has many equal layers in a row (or an equal pattern of layers, such as one with an adapter and
one without), the middle ones all do the same. A step then runs a few at either end, and
`autopeft.costs.unrolling` writes down what the others would have done.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from autopeft.costs.structure import structures
from autopeft.costs.trace import Trace
from autopeft.spec.model import ModelSummary

N_FIRST, N_LAST = 3, 2
"""Parts that are run at either end. The innermost two must do the same; those outside of them may differ from all
others: the first may get an input without a gradient, and then the second is the last to drop what all share."""


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """Layers of a list that are several equal parts, one after the other.

    Attributes:
        path: Of the list.
        start: Index of the first layer.
        period: Layers in a part.
        count: Parts.
    """

    path: str
    start: int
    period: int
    count: int

    @property
    def skipped(self) -> range:
        """Return the indices of the layers that need not be run."""
        return range(self.start + N_FIRST * self.period, self.stop - N_LAST * self.period)

    @property
    def stop(self) -> int:
        """Return the index after the last layer."""
        return self.start + self.count * self.period


def find_repeats(model: nn.Module, summary: ModelSummary) -> tuple[Repeat, ...]:
    """Return the repeats of a model with whatever is attached, in order, without overlap."""
    return repeats_among(kinds_of_layers(model, summary))


def kinds_of_layers(model: nn.Module, summary: ModelSummary) -> dict[str, list[int]]:
    """Return a number for each layer of each list, by its path: the same for layers that do the same."""
    paths = dict.fromkeys(layer.path.rpartition(".")[0] for layer in summary.layers)
    lists = {path: model.get_submodule(path) for path in paths}
    return {path: structures(list(each)) for path, each in lists.items() if isinstance(each, nn.ModuleList)}


def repeats_among(kinds: Mapping[str, Sequence[Hashable]]) -> tuple[Repeat, ...]:
    """Return the repeats of lists of layers, given by path, whose layers are alike where their kinds are equal."""
    return tuple(repeat for path, each in kinds.items() for repeat in _repeats_in(path, each, 0, len(each)))


def _repeats_in(path: str, kinds: Sequence[Hashable], start: int, stop: int) -> list[Repeat]:
    """Return the repeat that saves the most layers between two indices, and those before and after it."""
    best = max(_candidates(path, kinds, start, stop), key=lambda repeat: len(repeat.skipped), default=None)
    if best is None or not best.skipped:
        return []
    return [*_repeats_in(path, kinds, start, best.start), best, *_repeats_in(path, kinds, best.stop, stop)]


def _candidates(path: str, kinds: Sequence[Hashable], start: int, stop: int) -> Iterator[Repeat]:
    for period in range(1, (stop - start) // (N_FIRST + N_LAST) + 1):
        first = start
        for index in range(start, stop - period + 1):
            if index + period == stop or kinds[index] != kinds[index + period]:
                yield Repeat(path=path, start=first, period=period, count=(index - first) // period + 1)
                first = index + 1


@contextmanager
def few_layers(model: nn.Module, repeats: Sequence[Repeat], trace: Trace, settle: Callable[[], None]) -> Iterator[None]:
    """Run the first and last parts of each repeat alone inside the block, and note in the trace where the step is.

    Args:
        model: Its lists of layers are put back afterwards.
        repeats: From `find_repeats`.
        trace: Of the step.
        settle: Called before each note: what is open until the next operator must be known.
    """
    with ExitStack() as undo:
        for group, repeat in enumerate(repeats):
            layers = model.get_submodule(repeat.path)
            relay = _Relay(group, trace, settle)
            for index in range(repeat.start, repeat.stop):
                undo.callback(layers._modules.__setitem__, str(index), layers._modules[str(index)])
                layers._modules[str(index)] = _stand_in(layers._modules[str(index)], repeat, index, relay)
        yield


class _Relay:
    """What the layers of a repeat tell each other and the trace."""

    def __init__(self, group: int, trace: Trace, settle: Callable[[], None]) -> None:
        self.output: Any = None
        self._group = group
        self._trace = trace
        self._settle = settle

    def enter(self, direction: Any, part: int | None) -> None:
        self._settle()
        self._trace.enter(self._group, direction, part)


def _stand_in(layer: Any, repeat: Repeat, index: int, relay: _Relay) -> nn.Module:
    part, place = divmod(index - repeat.start, repeat.period)
    is_last = place == repeat.period - 1
    if N_FIRST <= part < repeat.count - N_LAST:
        resumes = repeat.stop - N_LAST * repeat.period
        return _Skipped(layer, relay, is_first=part == N_FIRST and place == 0, is_last=index + 1 == resumes)
    if part >= N_FIRST:
        part -= repeat.count - N_FIRST - N_LAST
    return _Marked(
        layer,
        relay,
        begins=part if place == 0 else None,
        ends=part if is_last else None,
        hands_on=is_last and part == N_FIRST - 1,
    )


class _StandIn(nn.Module):
    """In the place of a layer, with its attributes: models ask layers for the kind of their attention."""

    def __init__(self, layer: nn.Module, relay: _Relay) -> None:
        super().__init__()
        vars(self)["layer"] = layer  # not as a child
        self.relay = relay

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["layer"], name)


class _Marked(_StandIn):
    """A layer that runs, and tells when it is entered, and when a gradient reaches what it returned."""

    def __init__(
        self, layer: nn.Module, relay: _Relay, *, begins: int | None, ends: int | None, hands_on: bool
    ) -> None:
        super().__init__(layer, relay)
        self.begins, self.ends, self.hands_on = begins, ends, hands_on

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.begins is not None:
            self.relay.enter("forward", self.begins)
        output = vars(self)["layer"](*args, **kwargs)
        if self.ends is not None:
            node = _hidden(output).grad_fn
            if node is not None:
                node.register_prehook(lambda _, part=self.ends: self.relay.enter("backward", part))
        if self.hands_on:
            self.relay.output = output
        return output


class _Skipped(_StandIn):
    """A layer that does not run: it returns what the last one that ran returned."""

    def __init__(self, layer: nn.Module, relay: _Relay, *, is_first: bool, is_last: bool) -> None:
        super().__init__(layer, relay)
        self.is_first, self.is_last = is_first, is_last

    def forward(self, *_: Any, **__: Any) -> Any:
        if self.is_first:
            self.relay.enter("forward", None)
        output = self.relay.output
        if self.is_last:
            self.relay.output = None
        return output


def _hidden(output: Any) -> torch.Tensor:
    """Return the hidden states of what a layer returns: they come first."""
    hidden: torch.Tensor = output if isinstance(output, torch.Tensor) else next(iter(output))
    return hidden
