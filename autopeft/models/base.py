"""The base model: loaded once with the head that a task asks for, frozen, and reused by every trial."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from autopeft.errors import ModelError
from autopeft.models import quantization as quantized
from autopeft.models.loading import Checkpoint, read
from autopeft.models.model_files import fingerprint, locate
from autopeft.models.summary import summarize
from autopeft.spec.block import Quantization
from autopeft.spec.model import Head, ModelSummary
from autopeft.spec.training import Kernel, Precision

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Base", "build_meta", "load_base", "open_checkpoint"]


class Base:
    """A loaded base model with its task head; every parameter is frozen.

    Attributes:
        model: In evaluation mode after loading; the caller switches it.
        summary: Its structure, as a plain value.
        quantization: Storage of its linear maps.
        device: Where its weights are; the meta device where it was built without weights.
        kernel: The attention kernel in use: eager where the architecture has no other.
    """

    def __init__(
        self,
        *,
        model: "PreTrainedModel",
        summary: ModelSummary,
        quantization: Quantization,
        device: torch.device,
        head: Head,
        kernel: Kernel,
    ) -> None:
        self.model = model
        self.summary = summary
        self.quantization = quantization
        self.device = device
        self.head = head
        self.kernel = kernel
        self._frozen = [(name, tensor, _state_of(tensor)) for name, tensor in self._frozen_tensors()]

    def verify(self) -> None:
        """Check that no frozen tensor was replaced or written to since loading, without reading any.

        Raises:
            ModelError: One was.
        """
        present = {id(tensor) for _, tensor in self._frozen_tensors()}
        for name, tensor, state in self._frozen:
            if id(tensor) not in present or _state_of(tensor) != state:
                raise ModelError(
                    f"the frozen base must not change, but {name} was written to or replaced; load it again"
                )

    def _frozen_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        new = tuple(f"{path}." for path in self.summary.new_modules)
        for named in (self.model.named_parameters(), self.model.named_buffers()):
            yield from ((name, tensor) for name, tensor in named if not name.startswith(new))


def load_base(
    name: str,
    head: Head,
    *,
    quantization: Quantization = "none",
    precision: Precision = "fp32",
    kernel: Kernel = "sdpa",
    device: str = "cpu",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Base:
    """Load a base model with a task head and freeze it.

    Unquantized weights are kept in fp32 in either precision.

    Args:
        name: Hub id or local folder.
        head: What the task asks of the model.
        quantization: Storage of the linear maps of the layers.
        precision: Dtype that 4-bit weights are multiplied in.
        kernel: Attention kernel.
        device: Where the model computes.
        revision: Branch, tag or commit of a hub id.
        trust_remote_code: Whether to run Python code that the model brings.

    Raises:
        ModelError: The model cannot be found or loaded, or its structure is not understood.
        MissingDependencyError: The quantization needs a package that is not installed.
    """
    folder = locate(name, revision=revision, trust_remote_code=trust_remote_code)
    checkpoint = Checkpoint(name=name, folder=folder, head=head, kernel=kernel, trust_remote_code=trust_remote_code)
    compute_dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return _without_cache(
        open_checkpoint(checkpoint, quantization=quantization, compute_dtype=compute_dtype, device_map={"": device})
    )


def build_meta(
    name: str,
    head: Head,
    *,
    kernel: Kernel = "sdpa",
    revision: str | None = None,
    trust_remote_code: bool = False,
    needs_weights: bool = True,
) -> Base:
    """Build the same model on the meta device: shapes without storage, for costs before training.

    Args:
        name: Hub id or local folder.
        head: What the task asks of the model.
        kernel: Attention kernel.
        revision: Branch, tag or commit of a hub id.
        trust_remote_code: Whether to run Python code that the model brings.
        needs_weights: Whether a model without weights is refused; where not, a configuration is enough,
            and of the base nothing counts as new.

    Raises:
        ModelError: As `load_base`.
    """
    folder = locate(name, revision=revision, trust_remote_code=trust_remote_code, needs_weights=needs_weights)
    checkpoint = Checkpoint(name=name, folder=folder, head=head, kernel=kernel, trust_remote_code=trust_remote_code)
    return _without_cache(open_checkpoint(checkpoint, quantization="none", device_map={"": "meta"}))


def _without_cache(base: Base) -> Base:
    """Make a step drop the keys and values of earlier layers; generating asks for its cache by itself."""
    for module in base.model.modules():  # the stacks of an encoder-decoder have configurations of their own
        config: Any = getattr(module, "config", None)
        if hasattr(config, "use_cache"):
            config.use_cache = False
    return base


def open_checkpoint(
    checkpoint: Checkpoint,
    *,
    quantization: Quantization,
    compute_dtype: torch.dtype = torch.float32,
    dtype: torch.dtype = torch.float32,
    device_map: Any,
) -> Base:
    """Load a base from files that were located already.

    Args:
        checkpoint: The files, and the head.
        quantization: Storage of the linear maps of the layers.
        compute_dtype: Dtype that 4-bit weights are multiplied in.
        dtype: Dtype of everything that is not quantized.
        device_map: What transformers takes: a map of modules to devices, or `auto`.

    Raises:
        ModelError: The model cannot be loaded, or its structure is not understood.
        MissingDependencyError: The quantization needs a package that is not installed.
    """
    skip: tuple[str, ...] = ()
    if quantization != "none":
        # Some modules must be left out, and only a loaded model shows which they are.
        skip = quantized.skipped_paths(*read(checkpoint, dtype=dtype, device_map={"": "meta"}))
    config = quantized.quantization_config(quantization, skip=skip, compute_dtype=compute_dtype)
    model, new_modules = read(checkpoint, dtype=dtype, device_map=device_map, quantization_config=config)
    quantized.settle(model, quantization)
    model.requires_grad_(False)
    hashed = fingerprint(checkpoint.folder)
    return Base(
        model=model,
        summary=summarize(model, name=checkpoint.name, fingerprint=hashed, new_modules=new_modules),
        quantization=quantization,
        device=model.device,
        head=checkpoint.head,
        kernel=model.config._attn_implementation,
    )


def _state_of(tensor: torch.Tensor) -> tuple[int, int, torch.dtype]:
    """Return what every write to a tensor changes: its version, its storage, its dtype."""
    return tensor._version, 0 if tensor.is_meta else tensor.data_ptr(), tensor.dtype
