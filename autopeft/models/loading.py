"""Reading a checkpoint into a model with a task head, and telling what of it is new."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from autopeft.errors import ModelError
from autopeft.models.model_files import has_weights
from autopeft.models.roles import find_layers
from autopeft.spec.model import Head
from autopeft.spec.training import Kernel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Which files to read, and as what.

    Attributes:
        name: As the user gave it, for messages.
        folder: Where its files are.
        trust_remote_code: Whether to run Python code that the model brings.
    """

    name: str
    folder: Path
    head: Head
    kernel: Kernel = "sdpa"
    trust_remote_code: bool = False


def read(
    checkpoint: Checkpoint, *, dtype: torch.dtype, device_map: Any, quantization_config: Any = None
) -> tuple["PreTrainedModel", tuple[str, ...]]:
    """Load a model with transformers, and return it with the paths of its new modules.

    Where the architecture has no SDPA attention, it gets the eager one. Torch's random numbers go on
    as if nothing had been drawn.

    Raises:
        ModelError: transformers cannot load it, or weights of the base itself are missing.
    """
    with quiet(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            try:
                model, info = _from_pretrained(checkpoint, checkpoint.kernel, dtype, device_map, quantization_config)
            except ValueError as error:
                if "scaled_dot_product_attention" not in str(error):
                    raise
                model, info = _from_pretrained(checkpoint, "eager", dtype, device_map, quantization_config)
        except torch.OutOfMemoryError:
            raise
        except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(
                f"{checkpoint.name!r} cannot be loaded as {checkpoint.head.auto_class}: {reason}"
            ) from error
    _set_pad_token(model, checkpoint)
    return model, _new_modules(model, checkpoint, info)


def _auto_class(head: Head) -> Any:
    """Return the class of transformers. Raises `ModelError` where there is none of that name."""
    import transformers

    found = getattr(transformers, head.auto_class, None) if head.auto_class.startswith("AutoModel") else None
    if found is None:
        raise ModelError(
            "the head must be a class of transformers that begins with AutoModel, such as "
            f"AutoModelForImageClassification, but got {head.auto_class!r}"
        )
    return found


def _from_pretrained(
    checkpoint: Checkpoint, kernel: Kernel, dtype: torch.dtype, device_map: Any, quantization_config: Any
) -> tuple["PreTrainedModel", dict[str, Any]]:
    labels: dict[str, Any] = {}
    if checkpoint.head.labels:
        labels = {
            "num_labels": len(checkpoint.head.labels),
            "id2label": dict(enumerate(checkpoint.head.labels)),
            "label2id": {label: index for index, label in enumerate(checkpoint.head.labels)},
        }
    if not has_weights(checkpoint.folder):
        return _from_config(checkpoint, kernel, dtype, labels)
    model, info = _auto_class(checkpoint.head).from_pretrained(
        str(checkpoint.folder),
        attn_implementation=kernel,
        dtype=dtype,
        device_map=device_map,
        use_safetensors=True,
        trust_remote_code=checkpoint.trust_remote_code,
        quantization_config=quantization_config,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # a head of another size is a new module; any other mismatch is refused
        **labels,
    )
    return model, info


def _from_config(
    checkpoint: Checkpoint, kernel: Kernel, dtype: torch.dtype, labels: dict[str, Any]
) -> tuple["PreTrainedModel", dict[str, Any]]:
    """Build a model that has no weights on the meta device, as if its checkpoint lacked nothing."""
    import transformers

    trust = checkpoint.trust_remote_code
    config = transformers.AutoConfig.from_pretrained(str(checkpoint.folder), trust_remote_code=trust, **labels)
    with torch.device("meta"):
        model = _auto_class(checkpoint.head).from_config(
            config, attn_implementation=kernel, dtype=dtype, trust_remote_code=trust
        )
    return model.eval(), {"missing_keys": [], "mismatched_keys": []}


def _new_modules(model: "PreTrainedModel", checkpoint: Checkpoint, info: dict[str, Any]) -> tuple[str, ...]:
    """Return the paths of the modules that start from scratch: the head, and a pooler that is missing.

    Raises:
        ModelError: Weights of the base itself are missing.
    """
    layers = tuple(f"{layer.path}." for layer in find_layers(model))
    heads = _head_paths(model, layers)
    new = set(heads) if checkpoint.head.labels else set()
    wrong = []
    for key in sorted(k if isinstance(k, str) else k[0] for k in (*info["missing_keys"], *info["mismatched_keys"])):
        parts = key.split(".")
        pooler = next((index for index, part in enumerate(parts) if part.startswith("pooler")), None)
        if parts[0] in heads:
            new.add(parts[0])
        elif pooler is not None and not key.startswith(layers):
            new.add(".".join(parts[: pooler + 1]))
        else:
            wrong.append(key)
    if wrong:
        raise ModelError(
            f"the checkpoint must have every weight of the base model, but {checkpoint.name!r} lacks {len(wrong)}, "
            f"such as {wrong[0]}; is it a checkpoint of {type(model).__name__}?"
        )
    return tuple(path for path, _ in model.named_modules() if path in new)


def _head_paths(model: "PreTrainedModel", layers: tuple[str, ...]) -> list[str]:
    """Return the children of a model that are no part of its base.

    Where the base is no module of its own (T5, Whisper as a classifier), a head is what comes after the layers.
    """
    children = [(path, child) for path, child in model.named_children() if next(child.parameters(), None) is not None]
    if model.base_model is not model:
        return [path for path, child in children if child is not model.base_model]
    holds_layers = [any(layer.startswith(f"{path}.") for layer in layers) for path, _ in children]
    return [path for path, _ in children[len(children) - holds_layers[::-1].index(True) :]]


def read_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """Return the tokenizer in a model's folder, with a padding token, or None where the folder has none."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        return None
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _set_pad_token(model: "PreTrainedModel", checkpoint: Checkpoint) -> None:
    """Give the model a padding token: decoders find the last token of each sequence by it."""
    config = model.config.get_text_config()
    if not hasattr(config, "pad_token_id"):
        return  # images have no tokens
    if config.pad_token_id is None:
        token = _tokenizer_pad_token(checkpoint)
        if token is None:
            end = getattr(config, "eos_token_id", None)
            token = end[0] if isinstance(end, list | tuple) else end
        config.pad_token_id = token
    model.config.pad_token_id = config.pad_token_id


def _tokenizer_pad_token(checkpoint: Checkpoint) -> int | None:
    tokenizer = read_tokenizer(checkpoint.folder, trust_remote_code=checkpoint.trust_remote_code)
    if tokenizer is None:
        return None
    return None if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)


@contextmanager
def quiet() -> Iterator[None]:
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
