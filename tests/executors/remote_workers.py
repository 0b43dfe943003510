"""Workers that processes of Ray import by name."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

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
    """Does what the seed of a segment says: else it works.

    1 dies, 2 raises, 3 says that it is out of memory, 4 hangs, 5 has too little memory by a real limit, 6 raises what
    can't be pickled, 7 takes more memory every moment.
    """

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
            case 5:
                allocate_beyond_a_limit()
            case 6:
                raise UnpicklableError
            case 7:
                take_more_and_more()
        return super().run(segment, should_stop)


class UnpicklableError(Exception):
    """Holds an open file, which no pickle can."""

    def __init__(self) -> None:
        super().__init__("such a thing cannot travel", open(os.devnull))  # noqa: SIM115


def allocate_beyond_a_limit() -> None:
    """Ask for 4 GiB where the system lets this process have 256 MiB more than it has."""
    import resource

    n_pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (n_pages * resource.getpagesize() + 2**28, resource.RLIM_INFINITY))
    np.ones(2**29)


def take_more_and_more() -> None:
    """Fill 64 MiB after 64 MiB, 8 GiB at most, and hold them."""
    blocks = []
    for _ in range(128):
        blocks.append(np.ones(2**23))
        time.sleep(0.05)
    time.sleep(60)


class Sized(Steady):
    """Says that its device has 8 GiB, and that it keeps a base of 1 GiB loaded once it has run a segment."""

    def device_bytes(self) -> int:
        return 8 * 2**30

    def held_bytes(self) -> dict[str, int]:
        return {"none": 2**30} if self.n_segments else {}

    def run(self, segment: Segment, should_stop: Callable[[], bool]) -> SegmentResult:
        began = time.monotonic()  # one machine, one clock
        result = super().run(segment, should_stop)
        return replace(result, scores={**result.scores, "began": began, "ended": time.monotonic()})


def make_sized(_: None) -> Sized:
    return Sized()


def make_steady(data: NDArray[np.float64] | None) -> Steady:
    return Steady(data)


def make_troubled(_: None) -> Troubled:
    return Troubled()


def make_nothing(_: None) -> Steady:
    raise OSError("no worker can be made of this")


def make_from_file(path: str) -> Steady:
    if not Path(path).exists():
        raise OSError("no worker can be made without its file")
    return Steady()


def threads_of_torch() -> tuple[int, str]:
    import torch

    return torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]


def refuse(reason: str) -> None:
    from autopeft.errors import DataError

    raise DataError(reason)


def break_down() -> None:
    raise ZeroDivisionError("not of our making")
