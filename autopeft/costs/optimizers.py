"""What optimizers keep between steps, and what a step of them needs while it runs.

Trainable tensors are fp32, and so are their gradients. Fused AdamW and SGD allocate nothing in a step; neither does
the 8-bit AdamW of bitsandbytes on CUDA, whose kernel works in registers. On a CPU it computes with tensors, one
parameter after the other.
"""

from collections.abc import Iterable

from autopeft.spec.training import OptimizerName

_FLOAT = 4
_BLOCK = 256
"""Numbers that share a scale in an 8-bit state."""
_SMALLEST_8BIT = 4096
"""Numbers from which on a tensor has an 8-bit state."""
_TABLES_BYTES = 2 * 256 * _FLOAT
"""Two tables of the values that 8 bits stand for; all tensors share them."""


def state_bytes(optimizer: OptimizerName, sizes: Iterable[int]) -> int:
    """Return the bytes that an optimizer keeps for tensors of these sizes, in numbers.

    Source: `Optimizer2State.init_state` in bitsandbytes/optim/optimizer.py for 8 bits; the step count is a
        tensor in AdamW, and no tensor there.
    """
    match optimizer:
        case "adamw":
            return sum(2 * size * _FLOAT + _FLOAT for size in sizes)
        case "adamw_8bit":
            sizes = list(sizes)
            tables = _TABLES_BYTES if any(size >= _SMALLEST_8BIT for size in sizes) else 0
            return tables + sum(_moments_8bit_bytes(size) for size in sizes)
        case "sgd":
            return 0


def step_bytes(optimizer: OptimizerName, sizes: Iterable[int], *, device: str) -> int:
    """Return the bytes that a step needs at once, besides the weights, their gradients and the state.

    Source: `_optimizer_update_8bit_blockwise_cpu` in bitsandbytes/backends/cpu/ops.py: both moments, the scaled
        gradient, the root of the second moment and its quotient; in fp32, three tensors are enough.
    """
    if optimizer != "adamw_8bit" or device != "cpu":
        return 0
    return max(((5 if size >= _SMALLEST_8BIT else 3) * size * _FLOAT for size in sizes), default=0)


def _moments_8bit_bytes(size: int) -> int:
    if size < _SMALLEST_8BIT:
        return 2 * size * _FLOAT
    return 2 * (size + -(-size // _BLOCK) * _FLOAT)
