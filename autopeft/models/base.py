"""The base model: loaded once with the head that a task asks for, frozen, and reused by every trial."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from autopeft.errors import ModelError
from autopeft.models import quantization as quantized
from autopeft.models.model_files import fingerprint, locate
from autopeft.models.roles import find_layers, linear_shape, position_table
from autopeft.spec.block import Quantization
from autopeft.spec.model import LayerSummary, ModelSummary
from autopeft.spec.training import Kernel, Precision

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Head:
    """What a task asks of the model.

    Attributes:
        auto_class: Class of transformers that has the head, such as `AutoModelForSequenceClassification`.
        labels: Names of the classes in index order. Where there are any, the head is a new one even
            if the checkpoint has one: its classes mean something else.
    """

    auto_class: str
    labels: tuple[str, ...] = ()


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
    return _load(name, folder, head, quantization, precision, kernel, torch.device(device), trust_remote_code)


def build_meta(
    name: str, head: Head, *, kernel: Kernel = "sdpa", revision: str | None = None, trust_remote_code: bool = False
) -> Base:
    """Build the same model on the meta device: shapes without storage, for costs before training.

    Raises:
        ModelError: As `load_base`.
    """
    folder = locate(name, revision=revision, trust_remote_code=trust_remote_code)
    return _load(name, folder, head, "none", "fp32", kernel, torch.device("meta"), trust_remote_code)


def _load(
    name: str,
    folder: Path,
    head: Head,
    quantization: Quantization,
    precision: Precision,
    kernel: Kernel,
    device: torch.device,
    trust_remote_code: bool,
) -> Base:
    compute_dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    new_modules: tuple[str, ...] = ()
    if quantization != "none":
        # New modules must be left out of the quantization, and only a loaded model shows which they are.
        new_modules = _load(
            name, folder, head, "none", precision, kernel, torch.device("meta"), trust_remote_code
        ).summary.new_modules
    config = quantized.quantization_config(quantization, skip=new_modules, compute_dtype=compute_dtype)
    with _quiet(), torch.random.fork_rng(enabled=device.type != "meta"):
        model, info = _from_pretrained(name, folder, head, config, kernel, device, trust_remote_code)
    quantized.settle(model, quantization, compute_dtype)
    layers = find_layers(model)
    new_modules = _new_modules(name, model, head, info, layers)
    _set_pad_token(model, folder, trust_remote_code)
    model.requires_grad_(False)
    return Base(
        model=model,
        summary=_summarize(name, folder, model, layers, new_modules),
        quantization=quantization,
        device=device,
        head=head,
        kernel=model.config._attn_implementation,
    )


def _from_pretrained(
    name: str, folder: Path, head: Head, quantization_config: Any, kernel: Kernel, device: torch.device, trust: bool
) -> tuple["PreTrainedModel", dict[str, Any]]:
    """Load with transformers; its many errors become one kind."""
    import transformers

    auto_class = getattr(transformers, head.auto_class)
    labels: dict[str, Any] = {}
    if head.labels:
        labels = {
            "num_labels": len(head.labels),
            "id2label": dict(enumerate(head.labels)),
            "label2id": {label: index for index, label in enumerate(head.labels)},
        }
    arguments = {
        "dtype": torch.float32,
        "device_map": {"": str(device)},
        "use_safetensors": True,
        "trust_remote_code": trust,
        "quantization_config": quantization_config,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # a head of another size is a new module; anything else is refused below
        **labels,
    }
    try:
        try:
            return auto_class.from_pretrained(str(folder), attn_implementation=kernel, **arguments)  # type: ignore[no-any-return]
        except ValueError as error:
            if "scaled_dot_product_attention" not in str(error):
                raise
            return auto_class.from_pretrained(str(folder), attn_implementation="eager", **arguments)  # type: ignore[no-any-return]
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{name!r} cannot be loaded as {head.auto_class}: {reason}") from error


def _new_modules(
    name: str, model: "PreTrainedModel", head: Head, info: dict[str, Any], layers: tuple[LayerSummary, ...]
) -> tuple[str, ...]:
    """Return the paths of the modules that start from scratch: the head, and a pooler that is missing.

    Raises:
        ModelError: Weights of the base itself are missing.
    """
    backbone = model.base_model
    heads = [
        path
        for path, child in model.named_children()
        if child is not backbone and next(child.parameters(), None) is not None
    ]
    new = set(heads) if head.labels and backbone is not model else set()
    absent = {key if isinstance(key, str) else key[0] for key in (*info["missing_keys"], *info["mismatched_keys"])}
    wrong = []
    for key in sorted(absent):
        if key.startswith(tuple(f"{path}." for path in new)):
            continue
        parts = key.split(".")
        pooler = next((index for index, part in enumerate(parts) if part.startswith("pooler")), None)
        if parts[0] in heads:
            new.add(parts[0])
        elif pooler is not None and not key.startswith(tuple(layer.path for layer in layers)):
            new.add(".".join(parts[: pooler + 1]))
        else:
            wrong.append(key)
    if wrong:
        raise ModelError(
            f"the checkpoint must have every weight of the base model, but {name!r} lacks {len(wrong)}, such as "
            f"{wrong[0]}; is it a checkpoint of {type(model).__name__}?"
        )
    return tuple(path for path, _ in model.named_modules() if path in new)


def _summarize(
    name: str, folder: Path, model: "PreTrainedModel", layers: tuple[LayerSummary, ...], new_modules: tuple[str, ...]
) -> ModelSummary:
    config = model.config.get_text_config()
    n_new = logical_numel(model.get_submodule(path) for path in new_modules)
    n_heads = int(config.num_attention_heads)
    return ModelSummary(
        name=name,
        architecture=type(model).__name__,
        model_type=str(model.config.model_type),
        fingerprint=fingerprint(folder),
        n_parameters=logical_numel([model]) - n_new,
        n_head_parameters=n_new,
        new_modules=new_modules,
        hidden_size=int(config.hidden_size),
        n_heads=n_heads,
        n_key_value_heads=int(getattr(config, "num_key_value_heads", None) or n_heads),
        head_size=int(getattr(config, "head_dim", None) or config.hidden_size // n_heads),
        vocabulary_size=int(getattr(config, "vocab_size", 0)),
        n_positions=_n_positions(model),
        has_attention_interface=bool(getattr(model, "_supports_attention_backend", False)),
        takes_cache="past_key_values" in signature(model.base_model.forward).parameters,
        layers=layers,
    )


def logical_numel(modules: Iterable[nn.Module]) -> int:
    """Return the number of parameters as if none were quantized; shared ones count once."""
    sizes: dict[int, int] = {}
    for module in (inner for outer in modules for inner in outer.modules()):
        shape = linear_shape(module)
        for name, parameter in module.named_parameters(recurse=False):
            packed = shape is not None and name == "weight"
            sizes[id(parameter)] = shape[0] * shape[1] if packed and shape is not None else parameter.numel()
    return sum(sizes.values())


def _n_positions(model: "PreTrainedModel") -> int | None:
    """Return the longest input in tokens; RoBERTa-like models lose the positions up to the padding's."""
    declared = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if declared is None:
        return None
    table = position_table(model)
    padding = None if table is None else table.padding_idx
    return int(declared) if padding is None else int(declared) - padding - 1


def _set_pad_token(model: "PreTrainedModel", folder: Path, trust: bool) -> None:
    """Give the model a padding token: decoders find the last token of each sequence by it."""
    config = model.config.get_text_config()
    if config.pad_token_id is None:
        token = _tokenizer_pad_token(folder, trust)
        if token is None:
            end = config.eos_token_id
            token = end[0] if isinstance(end, list | tuple) else end
        config.pad_token_id = token
    model.config.pad_token_id = config.pad_token_id


def _tokenizer_pad_token(folder: Path, trust: bool) -> int | None:
    if not (folder / "tokenizer_config.json").is_file() and not (folder / "tokenizer.json").is_file():
        return None
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust)
    token = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return None if token is None else int(token)


def _state_of(tensor: torch.Tensor) -> tuple[int, int, torch.dtype]:
    """Return what every write to a tensor changes: its version, its storage, its dtype."""
    return tensor._version, 0 if tensor.is_meta else tensor.data_ptr(), tensor.dtype


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence reports and progress bars while loading; what they say is checked by us, errors are raised."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
