"""Which precision a device is made for: a small layer is trained in both, since a processor's flags do not tell."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import get_args

import torch

from autopeft.spec.training import Precision
from autopeft.training.loop import own_generators
from autopeft.training.timing import seconds_of

HOPELESS = 3.0
"""A precision, or a step, that takes this many times as long as the best one is given up."""
PLAIN_MARGIN = 0.95
"""Another choice than the plain one must take less than this share of its time: a tie goes to fp32 with SDPA."""
WIDTH, N_HEADS = 384, 12
"""Of the layer: those of MiniLM."""
N_EXAMPLES, N_TOKENS = 4, 32
N_ROUNDS = 6
BUDGET_SECONDS = 0.5
"""No further round starts once this much time was spent, after two."""


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """Seconds of a training step of one small transformer layer on a device.

    Attributes:
        fp32: Median in fp32.
        bf16: Median under bf16 autocast, infinite where the device cannot compute it.
    """

    fp32: float
    bf16: float

    @property
    def bf16_ratio(self) -> float:
        """Return how many times as long a step takes in bf16 as in fp32."""
        return self.bf16 / self.fp32

    @property
    def best(self) -> Precision:
        """Return the precision that the device is made for."""
        return "bf16" if self.bf16_ratio <= PLAIN_MARGIN else "fp32"

    def describe(self) -> str:
        """Say which precision the device is made for, and what the other one costs."""
        if self.bf16_ratio == float("inf"):
            return "made for fp32: it has no kernels for bf16"
        ratio = f"{self.bf16_ratio:.1f}" if self.bf16_ratio < 10 else f"{self.bf16_ratio:.0f}"
        return f"made for {self.best}: a step in bf16 takes {ratio} times as long as in fp32"


@cache
def step_times(device: str) -> StepTimes:
    """Time training steps of a small transformer layer in fp32 and in bf16, in turns; once in a process.

    Args:
        device: As torch names it.
    """
    with own_generators(device):
        steps = {precision: _small_step(device, precision == "bf16") for precision in get_args(Precision)}
        return StepTimes(**_in_turns(steps, torch.device(device)))


def _in_turns(steps: dict[str, Callable[[], None]], device: torch.device) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in steps}
    started = time.perf_counter()
    for n_rounds in range(N_ROUNDS):
        if n_rounds >= 2 and time.perf_counter() - started > BUDGET_SECONDS:
            break
        for name, step in steps.items():
            try:
                taken[name].append(seconds_of(step, device))
            except RuntimeError:  # no such kernel
                taken[name].append(float("inf"))
    # What the first round found and made, later ones use.
    return {name: statistics.median(seconds[1:]) for name, seconds in taken.items()}


def _small_step(device: str, bf16: bool) -> Callable[[], None]:
    """Return a training step of a layer on random numbers."""
    layer = torch.nn.TransformerEncoderLayer(WIDTH, N_HEADS, 4 * WIDTH, dropout=0.0, batch_first=True, device=device)
    read = torch.randn(N_EXAMPLES, N_TOKENS, WIDTH, device=device)

    def step() -> None:
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=bf16):
            made = layer(read)
        made.float().square().mean().backward()

    return step
