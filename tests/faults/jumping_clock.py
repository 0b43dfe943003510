"""A search whose machine sets its clock, ten years forth and back, in the middle of segments; run under libfaketime."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from autopeft.spec.trial import Segment, SegmentResult
from tests.bench import KnownWorker
from tests.conftest import make_summary
from tests.faults.driver import check_whole, search

JUMPS = ("+3650d", "-3650d", "+0", "-30d", "+1d")


class JumpingClock(KnownWorker):
    seen: set[int]

    def run(self, segment: Segment, should_stop: Callable[[], bool]) -> SegmentResult:
        Path(os.environ["FAKETIME_TIMESTAMP_FILE"]).write_text(JUMPS[len(self.segments) % len(JUMPS)] + "\n")
        self.seen.add(time.gmtime().tm_year)
        return super().run(segment, should_stop)


if __name__ == "__main__":
    worker = JumpingClock(make_summary())
    worker.seen = set()
    search(sys.argv[1], worker.model, n_trials=10, worker=worker, timeout_seconds=600.0)
    check_whole(Path(sys.argv[1]), worker.model, n_trials=10)
    print("years", len(worker.seen))
