"""What a trace says of a sum of gradients that autograd makes in place."""

import pytest

from autopeft.costs.trace import Trace, summarize


@pytest.mark.parametrize("wanted", [True, False], ids=["kept", "dropped at once"])
def test_a_sum_in_place_takes_no_memory_of_its_own(wanted: bool) -> None:
    trace = Trace()
    trace.made(1, 100, "activations")
    trace.made(2, 100, "activations")
    trace.made(3, 100, "activations")  # the sum of both, as a dispatch mode sees it made
    trace.freed(1)
    if not wanted:
        trace.freed(3)
    trace.made_in_place(target=1, new=3)
    trace.freed(2)
    if wanted:
        trace.freed(3)
    trace.made(3, 150, "activations")  # the tracker's keys are used again
    assert summarize(trace.events).peak_bytes == 200
    trace.freed(3)
    trace.made(4, 1, "activations")
    assert sum(summarize(trace.events).at_peak.values()) == 200
