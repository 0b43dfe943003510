"""Trials that were cut short, and wait to go on."""

import itertools
from collections import defaultdict
from heapq import heappop, heappush

from autopeft.searching.ledger import Ledger
from autopeft.searching.segments import Segments
from autopeft.spec.trial import TrialRecord


class Interrupted:
    """Trials that were cut short, the next one first: in O(log n), however many wait.

    Where several workers share the work, that is the trial with most training before it; one worker takes them in the
    order in which they came. How long a FLOP takes changes while the search learns, and differs between quantizations
    of the base: within one of them the order of the trials stays, and only the first of each are compared.

    Args:
        longest_first: Whether several workers share the work.
    """

    def __init__(self, ledger: Ledger, segments: Segments, *, longest_first: bool) -> None:
        self._ledger = ledger
        self._segments = segments
        self._longest_first = longest_first
        self._heaps: defaultdict[tuple[bool, str], list[tuple[float, int, TrialRecord]]] = defaultdict(list)
        self._seen: set[int] = set()
        self._places = itertools.count()

    def put(self, record: TrialRecord) -> None:
        """Take in a trial, once."""
        if record.number in self._seen:
            return
        order = -self._segments.flops_left_of(record) if self._longest_first else 0.0
        is_here = not record.has_started or self._segments.is_here(record)  # one without a step needs no checkpoint
        heap = self._heaps[is_here, record.design.quantization]
        heappush(heap, (order, next(self._places), record))  # the second tells all apart
        self._seen.add(record.number)

    def put_back(self, record: TrialRecord) -> None:
        """Let a trial that was taken wait again."""
        self._seen.discard(record.number)
        self.put(record)

    def take(self, *, here: bool) -> TrialRecord | None:
        """Return the next trial, which waits no more; None where there is none.

        Args:
            here: Of those that can go on with what this driver has in its folder, or of the others.
        """
        heaps = [heap for (is_here, _), heap in self._heaps.items() if is_here == here]
        for heap in heaps:
            while heap and not self._ledger.is_interrupted(heap[0][2]):  # another driver has gone on with it
                heappop(heap)
        waiting = [heap for heap in heaps if heap]
        return heappop(min(waiting, key=self._order))[2] if waiting else None

    def _order(self, heap: list[tuple[float, int, TrialRecord]]) -> tuple[float, int]:
        _, place, record = heap[0]
        return (-self._segments.seconds_left_of(record) if self._longest_first else 0.0), place
