"""The replay against PyTorch's rules, each by an example worked out from the source, and by what must always hold.

Line numbers are those of c10/cuda/CUDACachingAllocator.cpp at PyTorch commit 001074d; the note is "Memory management"
in the documentation's CUDA semantics.
"""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autopeft.costs.allocator import MIB, AllocatorPeaks, CachingAllocator, replay
from autopeft.costs.trace import Begun, Borrowed, Freed, Made, Moved, Trace
from autopeft.costs.tracker import StorageTracker
from autopeft.spec.design import Design

KIB = 1024


def taken(*sizes: int) -> CachingAllocator:
    allocator = CachingAllocator()
    for size in sizes:
        allocator.take(size)
    return allocator


@pytest.mark.parametrize(("size", "allocated"), [(1, 512), (512, 512), (513, 1024), (4 * MIB + 1, 4 * MIB + 512)])
def test_sizes_are_rounded_to_512_bytes(size: int, allocated: int):
    # kMinBlockSize: "all sizes are rounded to at least 512 bytes"; round_size
    assert taken(size).allocated_bytes == allocated


@pytest.mark.parametrize(
    ("size", "segment"),
    [
        (1, 2 * MIB),  # kSmallBuffer: "small" allocations are packed in 2 MiB blocks
        (MIB, 2 * MIB),  # kSmallSize: largest "small" allocation is 1 MiB
        (MIB + 1, 20 * MIB),  # kLargeBuffer: "large" allocations may be packed in 20 MiB blocks
        (10 * MIB - 512, 20 * MIB),  # kMinLargeAlloc: allocations between 1 and 10 MiB may use kLargeBuffer
        (10 * MIB, 10 * MIB),  # kRoundLarge: round up large allocations to 2 MiB
        (10 * MIB + 1, 12 * MIB),
    ],
)
def test_segments_have_the_sizes_of_get_allocation_size(size: int, segment: int):
    assert taken(size).reserved_bytes == segment


def test_small_allocations_share_a_segment_until_it_is_full():
    assert taken(MIB, MIB).reserved_bytes == 2 * MIB
    assert taken(MIB, MIB, 1).reserved_bytes == 4 * MIB


def test_small_and_large_allocations_never_share_one():
    # get_pool: the pool is chosen by size alone, though 15 MiB of the large segment are free
    assert taken(5 * MIB, 512).reserved_bytes == 22 * MIB


def test_a_small_block_is_split_down_to_512_bytes():
    # should_split, small pool: remaining >= kMinBlockSize
    allocator = taken(1023 * KIB + 512, MIB)
    assert allocator.allocated_bytes == 2 * MIB - 512
    allocator.take(512)
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (2 * MIB, 2 * MIB)


def test_a_large_block_is_split_only_where_more_than_a_mebibyte_remains():
    # should_split, large pool: remaining > kSmallSize; what is not split counts as allocated (block->size)
    assert taken(13 * MIB).allocated_bytes == 14 * MIB  # exactly 1 MiB remains
    allocator = taken(9 * MIB, 9 * MIB)
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (18 * MIB, 20 * MIB)  # 2 MiB of 11 were cut off
    allocator.take(2 * MIB)
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (20 * MIB, 20 * MIB)


def test_the_smallest_free_block_that_fits_is_taken():
    # get_free_block: lower_bound in a set that is ordered by size
    allocator = CachingAllocator()
    large, small = allocator.take(40 * MIB), allocator.take(12 * MIB)
    allocator.give_back(large)
    allocator.give_back(small)
    block = allocator.take(12 * MIB - 512)
    assert block.address == small.address
    assert allocator.reserved_bytes == 52 * MIB


def test_a_freed_segment_is_cut_for_a_smaller_tensor_and_a_larger_one_then_needs_a_new_segment():
    # The fragmentation that the note on expandable segments describes.
    allocator = CachingAllocator()
    allocator.give_back(allocator.take(40 * MIB))
    allocator.take(12 * MIB)
    allocator.take(40 * MIB)
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (52 * MIB, 80 * MIB)


def test_free_neighbours_become_one_block():
    # try_merge_blocks, with the neighbour before, the one after, and both
    allocator = CachingAllocator()
    first, second, third = (allocator.take(6 * MIB) for _ in range(3))
    for block in (first, third, second):
        allocator.give_back(block)
    assert [(block.n_bytes, block.is_free) for block in allocator.blocks()] == [(20 * MIB, True)]
    allocator.take(19 * MIB)
    assert allocator.reserved_bytes == 20 * MIB


def test_what_is_free_stays_reserved_until_the_cache_is_emptied():
    # The note: memory "will still show as used"; empty_cache releases segments that are free as a whole
    allocator = CachingAllocator()
    blocks = [allocator.take(size) for size in (40 * MIB, 6 * MIB, 6 * MIB)]
    allocator.give_back(blocks[0])
    allocator.give_back(blocks[1])
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (6 * MIB, 60 * MIB)
    allocator.empty_cache()
    assert allocator.reserved_bytes == 20 * MIB
    assert allocator.peak_reserved_bytes == 60 * MIB
    allocator.take(6 * MIB)
    assert allocator.reserved_bytes == 20 * MIB


sizes = st.one_of(
    st.integers(1, 4 * KIB), st.integers(1, 2 * MIB), st.integers(1, 48 * MIB), st.sampled_from([MIB, 10 * MIB])
)


@given(st.lists(st.tuples(sizes, st.integers(0, 7))))
def test_blocks_tile_their_segments_and_free_ones_never_touch(script: list[tuple[int, int]]):
    allocator, live = CachingAllocator(), []
    for size, choice in script:
        if choice < len(live) and choice % 2:
            allocator.give_back(live.pop(choice))
        else:
            live.append(block := allocator.take(size))
            assert block.n_bytes >= size
        blocks = allocator.blocks()
        assert sum(block.n_bytes for block in blocks) == allocator.reserved_bytes
        assert sum(block.n_bytes for block in blocks if not block.is_free) == allocator.allocated_bytes
        assert {block.address for block in blocks if not block.is_free} == {block.address for block in live}
        for left, right in pairwise(blocks):
            assert left.address + left.n_bytes <= right.address
            assert (left.after is right) == (right.before is left)
            assert not (left.after is right and left.is_free and right.is_free)
    peak = allocator.peak_reserved_bytes
    for block in live:
        allocator.give_back(block)
    assert allocator.allocated_bytes == 0
    assert allocator.reserved_bytes == peak  # a segment is never released by itself
    assert all(block.is_segment and block.is_free for block in allocator.blocks())
    allocator.empty_cache()
    assert (allocator.reserved_bytes, allocator.blocks()) == (0, [])


@given(st.lists(sizes, max_size=20))
def test_the_same_again_needs_nothing_new(script: list[int]):
    allocator = CachingAllocator()
    for block in [allocator.take(size) for size in script]:
        allocator.give_back(block)
    reserved = allocator.reserved_bytes
    allocator.empty_cache()
    blocks = [allocator.take(size) for size in script]
    assert allocator.reserved_bytes == reserved
    assert allocator.allocated_bytes == sum(block.n_bytes for block in blocks)


def test_a_step_is_replayed_in_its_order():
    # 30 MiB live, a kernel's 12 MiB on top of them, and then 30 MiB in the segment that the first left free
    step = [
        Made(1, 24 * MIB, "base"),
        Made(2, 30 * MIB, "activations"),
        Borrowed(12 * MIB),
        Freed(2),
        Made(3, 30 * MIB, "activations"),
    ]
    assert replay(None, step) == AllocatorPeaks(allocated_bytes=66 * MIB, reserved_bytes=66 * MIB)


def test_the_first_step_makes_the_optimizer_s_state_behind_the_gradients():
    trained = Made(1, 20 * MIB, "trainable")
    step = [
        trained,
        Made(2, 40 * MIB, "optimizer"),  # a tracker has to know it from the start
        Made(3, 60 * MIB, "activations"),
        Made(4, 20 * MIB, "gradients"),
        Freed(3),
        Begun("optimizer"),
    ]
    # First step: 20 of the weight, 60 that become free, 20 of the gradient; then two moments of 20 take 40 of the 60.
    # Second step: 60 fit into neither the 20 that remain nor the gradient's 20, and need a segment of their own.
    assert replay(step, [trained]) == AllocatorPeaks(allocated_bytes=140 * MIB, reserved_bytes=160 * MIB)


def test_moments_are_as_many_and_as_small_as_what_trains():
    # Two tensors of 0.5 MiB train: their four moments fit into the small pool, and take no 20 MiB segment
    trained = [Made(key, MIB // 2, "base") for key in (1, 2)]
    step = [*trained, *(Moved(key, "trainable") for key in (1, 2)), Made(3, 2 * MIB, "optimizer"), Begun("optimizer")]
    assert replay(step, trained) == AllocatorPeaks(allocated_bytes=3 * MIB, reserved_bytes=4 * MIB)


def test_a_base_without_training_is_loaded_once():
    evaluation = [Made(1, 20 * MIB, "base"), Made(2, 20 * MIB, "activations"), Freed(2)]
    assert replay(None, evaluation, workspaces=[8_519_680]).reserved_bytes == 60 * MIB


def test_a_sum_in_place_takes_no_memory():
    # `accumulate` in torch/csrc/autograd/input_buffer.cpp: three uses of x, two sums, in the buffer of the first
    weight = torch.empty(1024, 4096, device="meta", requires_grad=True)
    trace = Trace()
    tracker = StorageTracker(observer=trace)
    tracker.register([weight], "trainable")
    with tracker:
        hidden = weight * 2
        loss = (hidden * 2).sum() + (hidden * 3).sum() + (hidden * 4).sum()
        loss.backward()
    rounding = 512 * sum(isinstance(event, Made) for event in trace.events)
    assert tracker.peak_bytes <= replay(None, trace.events).allocated_bytes <= tracker.peak_bytes + rounding


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_what_is_reserved_covers_the_tensors(quantization: str, estimator):
    design = Design.from_dict({"quantization": quantization, "blocks": [{"lora": {"rank": 8}}]})
    estimate = estimator(device="cuda", precision="bf16")(design)
    assert estimate.reserved_memory is not None
    assert estimate.peak_memory <= estimate.reserved_memory < 1.5 * estimate.peak_memory + 40 * MIB


def test_a_cpu_reserves_nothing(estimator):
    assert estimator()(Design.from_dict({"blocks": [{"lora": {"rank": 8}}]})).reserved_memory is None
