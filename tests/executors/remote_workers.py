"""Workers that processes of Ray import by name."""

import os
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from autopeft.spec.trial import Segment, SegmentResult, SegmentStatus


class Steady:
    """Works for `segment.stop` hundredths of a second, or until it is asked to stop; says in which process."""

    def __init__(self, data: NDArray[np.float64] | None = None) -> None:
        self.data = data
        self.n_segments = 0

    def run(self, segment: Segment, should_stop: Callable[[], bool]) -> SegmentResult:
        self.n_segments += 1
        for examples in range(segment.stop):
            if should_stop():
                return self.answer(segment, SegmentStatus.INTERRUPTED, examples)
            time.sleep(0.01)
        return self.answer(segment, SegmentStatus.DONE, segment.stop)

    def answer(self, segment: Segment, status: SegmentStatus, examples: int) -> SegmentResult:
        scores = {"pid": float(os.getpid()), "n_segments": float(self.n_segments)}
        if self.data is not None:
            scores |= {"sum": float(self.data.sum()), "writeable": float(self.data.flags.writeable)}
        if segment.deadline_seconds is not None:
            scores["deadline"] = segment.deadline_seconds
        return SegmentResult(
            trial=segment.trial, status=status, examples=examples, scores=scores, checkpoint=segment.checkpoint
        )


class Troubled(Steady):
    """Does what the seed of a segment says: 1 dies, 2 raises, 3 is out of memory, 4 hangs; else it works."""

    def run(self, segment: Segment, should_stop: Callable[[], bool]) -> SegmentResult:
        match segment.seed:
            case 1:
                os._exit(1)
            case 2:
                raise KeyError("a worker must not raise")
            case 3:
                return self.answer(segment, SegmentStatus.OUT_OF_MEMORY, 0)
            case 4:
                time.sleep(60)
        return super().run(segment, should_stop)


def make_steady(data: NDArray[np.float64] | None) -> Steady:
    return Steady(data)


def make_troubled(_: None) -> Troubled:
    return Troubled()


def make_nothing(_: None) -> Steady:
    raise OSError("no worker can be made of this")


def threads_of_torch() -> tuple[int, str]:
    import torch

    return torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]


def refuse(reason: str) -> None:
    from autopeft.errors import DataError

    raise DataError(reason)


def break_down() -> None:
    raise ZeroDivisionError("not of our making")
