"""What costs depend on besides the model and the design, as a value that is checked when it is made."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from autopeft.errors import DesignError
from autopeft.spec.cost import Workload
from autopeft.spec.messages import echo, one_of
from autopeft.spec.task import DEFAULT_TASK, task_names
from autopeft.spec.training import Kernel, OptimizerName, Precision

Dtype = Literal["float32", "bfloat16"]
Device = Literal["cpu", "cuda"]
PRECISIONS: Mapping[Dtype, Precision] = {"float32": "fp32", "bfloat16": "bf16"}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a design would be trained.

    Attributes:
        batch_size: Examples in a training step, and in an evaluation step.
        sequence_length: Tokens of every example.
        dtype: What is computed in. Unquantized weights are fp32 in either case, and bfloat16 means autocast.
        optimizer: What makes the steps.
        checkpointing: Whether layers compute their activations again in the backward pass instead of keeping them.
        device: Where it would be trained.
        kernel: Attention kernel.
        task: What it would be trained for: `text-classification`, with two classes, or `causal-lm`.
        n_steps: Steps that `train_flops` covers.
    """

    batch_size: int = 8
    sequence_length: int = 128
    dtype: Dtype = "float32"
    optimizer: OptimizerName = "adamw"
    checkpointing: bool = False
    device: Device = "cpu"
    kernel: Kernel = "sdpa"
    task: str = DEFAULT_TASK
    n_steps: int = 1

    def __post_init__(self) -> None:
        """Check every value by itself.

        Raises:
            DesignError: One is unknown, or too small.
        """
        for name in ("batch_size", "sequence_length", "n_steps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise DesignError(f"{name} must be a whole number >= 1, but got {name}={echo(value)}")
        if not isinstance(self.checkpointing, bool):
            raise DesignError(f"checkpointing must be True or False, but got {echo(self.checkpointing)}")
        known: dict[str, tuple[Any, ...]] = {
            "dtype": get_args(Dtype),
            "optimizer": get_args(OptimizerName),
            "device": get_args(Device),
            "kernel": get_args(Kernel),
            "task": task_names(),
        }
        for name, names in known.items():
            if getattr(self, name) not in names:
                raise DesignError(f"{name} {one_of(names, getattr(self, name))}")

    @property
    def workload(self) -> Workload:
        """Return the shapes of the batches."""
        return Workload.uniform(batch_size=self.batch_size, n_tokens=self.sequence_length, n_steps=self.n_steps)

    def describe(self) -> str:
        """Say it in a line."""
        extra = ", checkpointing" if self.checkpointing else ""
        return (
            f"batches of {self.batch_size} x {self.sequence_length} tokens, {self.dtype}, {self.optimizer}{extra}, "
            f"{self.kernel} attention on {self.device}"
        )
