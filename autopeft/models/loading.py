"""Reading a checkpoint into a model with a task head, and telling what of it is new."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from autopeft.errors import ModelError
from autopeft.models.model_files import has_weights
from autopeft.models.padding import pad_token_id
from autopeft.models.roles import find_layers
from autopeft.spec.messages import first_line
from autopeft.spec.model import Head
from autopeft.spec.training import Kernel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TOKENIZER_FILES = ("tokenizer*", "*vocab*", "*.model", "*.bpe", "*.spm", "*.tiktoken", "tekken.json", "dict.txt")
"""Where tokenizers keep words; which of them count, the class of the tokenizer says."""


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
    _check_architecture(checkpoint)
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
    _check_direction(model, checkpoint)
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


_READS_END_TOKENS = ("bart", "bigbird_pegasus", "led", "mbart", "mt5", "mvp", "plbart", "t5", "umt5")
"""Encoder-decoders whose classifier picks the end tokens out of a batch, and needs as many in each row."""


def _check_architecture(checkpoint: Checkpoint) -> None:
    """Raise `ModelError` where transformers builds no model of the checkpoint's architecture with the head."""
    from transformers.models.auto import modeling_auto

    known = getattr(_auto_class(checkpoint.head), "_model_mapping", None)
    try:
        kind = json.loads((checkpoint.folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # transformers says what is wrong with the file
    if checkpoint.trust_remote_code or known is None or kind not in known._config_mapping:
        return
    if checkpoint.head.labels and kind in _READS_END_TOKENS:
        raise ModelError(
            f"a classifier must read each row alone, but that of {checkpoint.name!r} ({kind}) gathers the end tokens "
            "of a whole batch, whose costs cannot be predicted; take an encoder such as BERT, or a decoder"
        )
    if kind in known._model_mapping:
        return
    built = [
        name
        for name, mapping in {
            "AutoModelForSequenceClassification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
            "AutoModelForCausalLM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
            "AutoModelForSeq2SeqLM": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
            "AutoModelForMaskedLM": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        }.items()
        if kind in mapping
    ]
    raise ModelError(
        f"transformers must build the model as {checkpoint.head.auto_class}, but {checkpoint.name!r} is {kind!r}, "
        f"which it builds as {', '.join(built) or 'no class that reads text'}; take another model, or another task"
    )


def _check_direction(model: "PreTrainedModel", checkpoint: Checkpoint) -> None:
    """Raise `ModelError` where a model that is to write sees the tokens that it is to predict."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    if checkpoint.head.auto_class != "AutoModelForCausalLM":
        return
    kind, config = model.config.model_type, model.config
    # XLNet sees all tokens, too, unless each input says in which order
    is_encoder = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES or kind == "xlnet"
    if is_encoder and not (getattr(config, "is_decoder", False) or getattr(config, "causal", False)):
        raise ModelError(
            f"a model that writes must see earlier tokens only, but {checkpoint.name!r} ({kind}) is an encoder, which "
            "sees them all (its config.json does not say is_decoder: true); take a decoder, such as GPT-2 or Llama"
        )


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
    return model.eval(), {"missing_keys": [], "mismatched_keys": [], "unexpected_keys": []}


def _new_modules(model: "PreTrainedModel", checkpoint: Checkpoint, info: dict[str, Any]) -> tuple[str, ...]:
    """Return the paths of the modules that start from scratch: the head, and a pooler that is missing.

    Raises:
        ModelError: Weights of the base itself are missing.
    """
    layers = tuple(f"{layer.path}." for layer in find_layers(model))
    heads = _head_paths(model, layers)
    new = set(heads) if checkpoint.head.labels else set()
    wrong = []
    shapes = {key: (found, wanted) for key, found, wanted in info["mismatched_keys"]}
    for key in sorted({*info["missing_keys"], *shapes}):
        parts = key.split(".")
        pooler = next((index for index, part in enumerate(parts) if part.startswith("pooler")), None)
        if parts[0] in heads:
            new.add(parts[0])
        elif pooler is not None and not key.startswith(layers):
            new.add(".".join(parts[: pooler + 1]))
        else:
            wrong.append(key)
    if differing := [key for key in wrong if key in shapes]:
        found, wanted = (list(shape) for shape in shapes[differing[0]])
        raise ModelError(
            f"weights must have the shapes of config.json, but in {checkpoint.name!r} {differing[0]} has {found} and "
            f"config.json says {wanted}; fetch the model again, or correct config.json"
        )
    if wrong:
        raise ModelError(
            f"the checkpoint must have every weight of the base model, but {checkpoint.name!r} lacks {len(wrong)}, "
            f"such as {wrong[0]}; is it a checkpoint of {type(model).__name__}?"
        )
    _check_used(model, checkpoint, info["unexpected_keys"])
    return tuple(path for path, _ in model.named_modules() if path in new)


def _check_used(model: "PreTrainedModel", checkpoint: Checkpoint, unused: Iterable[str]) -> None:
    """Refuse weights that belong to the layers, but have no place in them: the model would be another one.

    Heads of other tasks may be left over, and buffers of old versions: a weight is what would stand beside one that
    the model has (a bias), or in a layer that it has not.
    """
    modules = dict(model.named_modules())
    stacks = {layer.path.rpartition(".")[0] for layer in find_layers(model)}
    wrong = []
    prefix = f"{model.base_model_prefix}."  # a checkpoint of the base alone goes without it
    for key in sorted(unused):
        path = key if key.startswith(prefix) or model.base_model is model else f"{prefix}{key}"
        stack = next((stack for stack in stacks if path.startswith(f"{stack}.")), None)
        if stack is None:
            continue
        layer = f"{stack}.{path.removeprefix(f'{stack}.').partition('.')[0]}"
        beside = modules.get(path.rpartition(".")[0])
        if layer not in modules or getattr(beside, "weight", None) is not None:
            wrong.append(key)
    if wrong:
        raise ModelError(
            f"a model must use every weight of the layers, but {type(model).__name__} leaves out {len(wrong)} of "
            f"{checkpoint.name!r}, such as {wrong[0]}; correct config.json (model_type, number of layers, biases)"
        )


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
    """Return the tokenizer in a model's folder, with a padding token, or None where the folder has none.

    Where its files are missing, transformers makes an empty one from the configuration, which knows no word.

    Raises:
        ModelError: There are files, but they make no tokenizer.
    """
    if not any(path.is_file() for pattern in _TOKENIZER_FILES for path in folder.glob(pattern)):
        return None
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except Exception as error:  # anything from a damaged file to a missing optional package
        raise ModelError(_broken_tokenizer(folder, error)) from error
    vocabularies = tokenizer.vocab_files_names.values()  # none where tokens are characters or bytes
    if vocabularies and not any((folder / name).is_file() for name in vocabularies):
        return None
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _broken_tokenizer(folder: Path, error: Exception) -> str:
    if (folder / "vocab.json").is_file() and not (folder / "merges.txt").is_file():
        reason = "vocab.json needs merges.txt beside it"
    elif "sentencepiece" in str(error) and (models := sorted(path.name for path in folder.glob("*.model"))):
        reason = f"{models[0]} needs the package sentencepiece (pip install sentencepiece)"
    else:
        reason = first_line(error)
    return (
        f"a model must have a tokenizer, but that in {str(folder)!r} cannot be loaded: {reason}; save a whole one "
        f"there with tokenizer.save_pretrained"
    )


def _set_pad_token(model: "PreTrainedModel", checkpoint: Checkpoint) -> None:
    """Give the model the token that batches are filled with: decoders find the last token of each sequence by it.

    The tokenizer says it, whatever the configuration says: where they differ, a classifier would read the padding.
    """
    config = model.config.get_text_config()
    if not hasattr(config, "pad_token_id"):
        return  # images have no tokens
    token = _tokenizer_pad_token(checkpoint)
    if token is None:
        token = config.pad_token_id
    if token is None:
        end = getattr(config, "eos_token_id", None)
        token = end[0] if isinstance(end, list | tuple) else end
    for each in (config, model.config, getattr(model, "generation_config", None)):
        if each is not None:
            each.pad_token_id = token


def _tokenizer_pad_token(checkpoint: Checkpoint) -> int | None:
    files = [checkpoint.folder / name for name in ("tokenizer.json", "tokenizer_config.json")]
    changed = tuple(file.stat().st_mtime_ns if file.is_file() else None for file in files)
    return _pad_token_of(checkpoint.folder, changed, trust_remote_code=checkpoint.trust_remote_code)


@lru_cache(maxsize=32)  # a large vocabulary takes a second to read, and a study loads its model several times
def _pad_token_of(folder: Path, _changed: tuple[int | None, ...], *, trust_remote_code: bool) -> int | None:
    try:
        tokenizer = read_tokenizer(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError, TypeError):
        return None  # preparing the data says what is wrong with it
    return None if tokenizer is None else pad_token_id(tokenizer)


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
