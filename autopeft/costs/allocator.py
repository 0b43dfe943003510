"""What CUDA's caching allocator would reserve: a replay of its rules over the life of every storage.

PyTorch asks CUDA for segments and hands out blocks of them. A segment stays reserved after its blocks are
free, rounding and fragments make it larger than the tensors in it, and what counts against a card's memory
is the sum of segments. The allocator is deterministic, so the order of allocations and frees says how much.

The settings are the defaults. Not known here: other streams, CUDA graphs, `PYTORCH_CUDA_ALLOC_CONF`, memory that
never goes through the allocator (the CUDA context, 0.3 to 0.6 GiB; NCCL), and the segments that are released
and taken again where a card is full.

Source: "Memory management" in the CUDA semantics note of PyTorch's documentation, and the functions
    named below in c10/cuda/CUDACachingAllocator.cpp.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from autopeft.costs.trace import Begun, Borrowed, Event, Freed, Made, Moved

MIB = 2**20
ROUNDING_BYTES = 512
"""Every allocation is a multiple of this: `kMinBlockSize`."""
SMALL_BYTES = MIB
"""The largest allocation of the small pool: `kSmallSize`."""
SMALL_SEGMENT_BYTES = 2 * MIB
"""What the small pool asks CUDA for: `kSmallBuffer`."""
MEDIUM_BYTES = 10 * MIB
"""From here on, a large allocation has a segment of its own size: `kMinLargeAlloc`."""
MEDIUM_SEGMENT_BYTES = 20 * MIB
"""What the large pool asks CUDA for where less is needed: `kLargeBuffer`."""
SEGMENT_ROUNDING_BYTES = 2 * MIB
"""Larger segments are a multiple of this: `kRoundLarge`."""


@dataclass(slots=True, eq=False)
class Block:
    """A piece of a segment, in use or free, between its neighbours in the same segment."""

    address: int
    n_bytes: int
    is_small: bool
    is_free: bool = False
    before: "Block | None" = None
    after: "Block | None" = None

    @property
    def is_segment(self) -> bool:
        """Return whether the block is a whole segment."""
        return self.before is None and self.after is None


class CachingAllocator:
    """Hand out blocks and take them back as PyTorch's allocator does on one device and one stream.

    Attributes:
        allocated_bytes: Bytes of blocks in use, rounding included; `torch.cuda.memory_allocated`.
        reserved_bytes: Bytes of segments; `torch.cuda.memory_reserved`.
        peak_allocated_bytes: Highest `allocated_bytes` so far.
        peak_reserved_bytes: Highest `reserved_bytes` so far.
    """

    def __init__(self) -> None:
        self.allocated_bytes = 0
        self.reserved_bytes = 0
        self.peak_allocated_bytes = 0
        self.peak_reserved_bytes = 0
        self._next_address = 0
        self._free: dict[bool, list[tuple[int, int]]] = {True: [], False: []}  # by pool: size and address, sorted
        self._by_address: dict[int, Block] = {}

    def take(self, n_bytes: int) -> Block:
        """Return a block of at least so many bytes: the smallest free one that fits, or one of a new segment.

        Source: `malloc`, `get_free_block` and `alloc_found_block`.
        """
        size = _rounded(n_bytes, ROUNDING_BYTES)
        is_small = size <= SMALL_BYTES
        free = self._free[is_small]
        at = bisect_left(free, (size, -1))
        block = self._by_address[free.pop(at)[1]] if at < len(free) else self._segment(size, is_small)
        if _is_split(block, size):
            self._split(block, size)
        block.is_free = False
        self.allocated_bytes += block.n_bytes
        self.peak_allocated_bytes = max(self.peak_allocated_bytes, self.allocated_bytes)
        return block

    def give_back(self, block: Block) -> None:
        """Free a block, as one with its neighbours where they are free.

        Source: `free_block` and `try_merge_blocks`.
        """
        self.allocated_bytes -= block.n_bytes
        block.is_free = True
        if block.before is not None and block.before.is_free:
            self._remove(block.before)
            block = _merge(block.before, block, self._by_address)
        if block.after is not None and block.after.is_free:
            self._remove(block.after)
            block = _merge(block, block.after, self._by_address)
        insort(self._free[block.is_small], (block.n_bytes, block.address))

    def empty_cache(self) -> None:
        """Return segments to CUDA that are free as a whole.

        Source: `release_cached_blocks`.
        """
        for is_small, free in self._free.items():
            whole = [entry for entry in free if self._by_address[entry[1]].is_segment]
            self._free[is_small] = [entry for entry in free if not self._by_address[entry[1]].is_segment]
            for n_bytes, address in whole:
                del self._by_address[address]
                self.reserved_bytes -= n_bytes

    def blocks(self) -> list[Block]:
        """Return all blocks by address, in use and free."""
        return [self._by_address[address] for address in sorted(self._by_address)]

    def _segment(self, size: int, is_small: bool) -> Block:
        n_bytes = _segment_bytes(size)
        block = Block(self._next_address, n_bytes, is_small)
        self._by_address[block.address] = block
        self._next_address += n_bytes
        self.reserved_bytes += n_bytes
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)
        return block

    def _split(self, block: Block, size: int) -> None:
        """Cut a block off after `size` bytes; the rest is free."""
        rest = Block(block.address + size, block.n_bytes - size, block.is_small, True, block, block.after)
        if block.after is not None:
            block.after.before = rest
        block.after, block.n_bytes = rest, size
        self._by_address[rest.address] = rest
        insort(self._free[rest.is_small], (rest.n_bytes, rest.address))

    def _remove(self, block: Block) -> None:
        free = self._free[block.is_small]
        del free[bisect_left(free, (block.n_bytes, block.address))]


def _rounded(n_bytes: int, multiple: int) -> int:
    """Return the next multiple; the source is `round_size`, without divisions of powers of two."""
    return max(multiple, -(-n_bytes // multiple) * multiple)


def _segment_bytes(size: int) -> int:
    """Return what CUDA is asked for, for one allocation; the source is `get_allocation_size`."""
    if size <= SMALL_BYTES:
        return SMALL_SEGMENT_BYTES
    return MEDIUM_SEGMENT_BYTES if size < MEDIUM_BYTES else _rounded(size, SEGMENT_ROUNDING_BYTES)


def _is_split(block: Block, size: int) -> bool:
    """Return whether the rest of a block becomes one of its own; the source is `should_split`."""
    rest = block.n_bytes - size
    return rest >= ROUNDING_BYTES if block.is_small else rest > SMALL_BYTES


def _merge(block: Block, absorbed: Block, by_address: dict[int, Block]) -> Block:
    del by_address[absorbed.address]
    block.n_bytes += absorbed.n_bytes
    block.after = absorbed.after
    if block.after is not None:
        block.after.before = block
    return block


@dataclass(frozen=True, kw_only=True)
class AllocatorPeaks:
    """Highest bytes of a training, as `torch.cuda.max_memory_allocated` and `max_memory_reserved` say them."""

    allocated_bytes: int
    reserved_bytes: int


def replay(
    training: Sequence[Event] | None, *others: Sequence[Event], workspaces: Sequence[int] = ()
) -> AllocatorPeaks:
    """Return what the allocator's peaks would be over a training: the second step is like all that come after.

    The base is loaded; the first step makes the optimizer's state behind its gradients; a second step, an
    evaluation and the writing of samples find everything in place.

    Args:
        training: Of one step with the optimizer's state in place; None where nothing trains.
        others: Of one evaluation step, and of what comes after it.
        workspaces: What libraries take before the first product and keep, in bytes.

    Omits: what loading needs for a while, such as a weight before it is quantized; that a kernel's scratch memory
        may be several tensors.
    """
    replayed = _Replay()
    replayed.load(training or others[0], workspaces)
    for step in (training, training, *others):
        if step is not None:
            replayed.run(step)
    allocator = replayed.allocator
    return AllocatorPeaks(allocated_bytes=allocator.peak_allocated_bytes, reserved_bytes=allocator.peak_reserved_bytes)


class _Replay:
    """Steps on one allocator; what outlives them is kept by key."""

    def __init__(self) -> None:
        self.allocator = CachingAllocator()
        self._resident: set[int] = set()
        self._live: dict[int, Block] = {}
        self._has_state = False

    def load(self, step: Sequence[Event], workspaces: Sequence[int]) -> None:
        """Load the base and what is attached to it."""
        for event in step:
            if isinstance(event, Made) and event.category in ("base", "trainable"):
                self._resident.add(event.key)
                if event.n_bytes:
                    self.allocator.take(event.n_bytes)
        for n_bytes in workspaces:
            self.allocator.take(n_bytes)

    def run(self, step: Sequence[Event]) -> None:
        """Run one step, and drop whatever it leaves."""
        for event in step:
            match event:
                case Made(key, n_bytes, category):
                    if n_bytes and key not in self._resident and category != "optimizer":
                        self._live[key] = self.allocator.take(n_bytes)
                case Freed(key):
                    if key in self._live:
                        self.allocator.give_back(self._live.pop(key))
                case Begun("optimizer") if not self._has_state:
                    self._has_state = True
                    for n_bytes in _state_sizes(step):
                        self.allocator.take(n_bytes)
                case Borrowed(n_bytes) if n_bytes:
                    self.allocator.give_back(self.allocator.take(n_bytes))
        for block in self._live.values():
            self.allocator.give_back(block)
        self._live.clear()


def _state_sizes(step: Sequence[Event]) -> Iterator[int]:
    """Yield the sizes of the optimizer's tensors: two for each one that trains, in proportion to it.

    A step counts the state as one storage, which would be in another pool than its parts are.
    """
    sizes = {event.key: event.n_bytes for event in step if isinstance(event, Made)}
    named = {event.key: event.category for event in step if isinstance(event, Made | Moved)}
    trained = [sizes[key] for key, category in named.items() if category == "trainable"]
    total = sum(event.n_bytes for event in step if isinstance(event, Made) and event.category == "optimizer")
    for n_bytes in trained:
        half = total * n_bytes // (2 * sum(trained))
        if half:
            yield from (half, half)
