"""How designs are trained: fixed for a study, the same for every design."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Precision = Literal["fp32", "bf16"]
"""Computation dtype; weights that train are always kept in fp32, and bf16 runs under autocast."""
Kernel = Literal["sdpa", "eager"]
OptimizerName = Literal["adamw", "adamw_8bit", "sgd"]
"""AdamW with fp32 moments, AdamW with moments of 8 bits (bitsandbytes, on a CPU too), and SGD without momentum."""


class Training(BaseModel):
    """Length, batches and schedule of a full training; learning rates belong to the space.

    Attributes:
        epochs: Passes over the training split of a trial that trains in full.
        batch_size: Examples of a training step.
        evaluation_batch_size: Examples of an evaluation step.
        max_length: Longest input in tokens; None means what the model allows, at most 512.
        warmup: Share of the full training over which the learning rate rises linearly.
        schedule: What the learning rate does after the warm-up.
        weight_decay: Of AdamW, on matrices alone: biases, norms and scales have none.
        max_grad_norm: Gradients are clipped to this norm; None leaves them.
        precision: `auto` chooses by a short measurement, once for the study.
        kernel: Attention kernel; `auto` chooses by a short measurement, once for the study.
        device: `auto` takes a GPU where there is one.
        optimizer: What makes the steps. Learning rates that a space calls `prior`, and the defaults, were measured with
            AdamW: SGD wants rates that are larger by factors of ten to a thousand, so give the space ranges for it.
        checkpointing: Whether each layer's activations are computed again in the backward pass instead of kept: less
            memory, one more forward pass of time in each step, and the same results.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: Annotated[float, Field(gt=0)] = 2
    batch_size: Annotated[int, Field(gt=0)] = 32
    evaluation_batch_size: Annotated[int, Field(gt=0)] = 64
    max_length: Annotated[int, Field(gt=0)] | None = None
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.06
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    precision: Literal["auto"] | Precision = "auto"
    kernel: Literal["auto"] | Kernel = "auto"
    device: str = "auto"
    optimizer: OptimizerName = "adamw"
    checkpointing: bool = False


class Splits(BaseModel):
    """Where the three splits come from.

    Attributes:
        train: Name of a split in the data, or how many examples (below 1: a share) to take for it.
        validation: The same for the split that the search compares designs on.
        test: The same for the split that is read once, at the end.
        seed: Of the random assignment, where splits are made.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: str | Annotated[float, Field(gt=0)] | None = None
    validation: str | Annotated[float, Field(gt=0)] | None = None
    test: str | Annotated[float, Field(gt=0)] | None = None
    seed: int = 0
