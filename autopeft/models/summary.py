"""The structure of a loaded model as a plain value: what the search knows of it."""

import sys
from collections.abc import Iterable, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any

from torch import nn

from autopeft.errors import ModelError
from autopeft.models.norms import find_norms
from autopeft.models.peft_gate import expert_names
from autopeft.models.roles import attention_path, find_layers, linear_shape, position_table
from autopeft.spec.model import LayerSummary, Modality, ModelSummary, NormSummary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def summarize(model: "PreTrainedModel", *, name: str, fingerprint: str, new_modules: tuple[str, ...]) -> ModelSummary:
    """Return the structure of a model with its head as a plain value; the same on every device and quantization.

    Args:
        model: On any device, in any quantization, with nothing attached.
        name: As the user gave it.
        fingerprint: Of its files.
        new_modules: Paths of the modules that the checkpoint did not have.

    Raises:
        ModelError: The structure is not understood.
    """
    config = model.config.get_text_config()
    n_new = logical_numel(model.get_submodule(path) for path in new_modules)
    layers, inputs = find_layers(model), signature(model.base_model.forward).parameters
    n_heads = _n_heads(config, layers)
    return ModelSummary(
        name=name,
        architecture=type(model).__name__,
        model_type=str(model.config.model_type),
        fingerprint=fingerprint,
        n_parameters=logical_numel([model]) - n_new,
        n_head_parameters=n_new,
        new_modules=new_modules,
        hidden_size=int(config.hidden_size),
        n_heads=n_heads,
        n_key_value_heads=_n_key_value_heads(config, n_heads),
        head_size=int(_setting(config, "head_dim") or config.hidden_size // n_heads),
        vocabulary_size=int(getattr(config, "vocab_size", 0)),
        n_positions=n_positions(model),
        n_target_positions=_n_target_positions(config) if layers[-1].stack == "decoder" else None,
        has_attention_interface=_has_attention_interface(model, layers),
        sliding_window=_setting(config, "sliding_window"),
        takes_cache="past_key_values" in inputs,
        # the text of an encoder-decoder enters twice
        takes_embeddings="inputs_embeds" in inputs and not model.config.is_encoder_decoder,
        is_decoder=_is_decoder(model, layers),
        modality=_modality(model),
        layers=layers,
        outer_norms=_outer_norms(model, layers, new_modules),
        own_maps=_own_maps(model, layers),
        expert_names=expert_names(model.config.model_type),
    )


def _n_heads(config: Any, layers: Sequence[LayerSummary]) -> int:
    n_heads = _setting(config, "num_attention_heads")
    if n_heads is None:
        seen = ", ".join(linear.path.removeprefix(f"{layers[0].path}.") for linear in layers[0].roles.values())
        raise ModelError(
            f"the layers must have attention heads, but {type(config).__name__} says of none; what has a role in a "
            f"layer: {seen or 'nothing'}; take a model with attention"
        )
    return int(n_heads)


def _setting(config: Any, name: str) -> Any:
    """Return a setting of a model, or None where it has none, or where its layers differ in it (Gemma 4)."""
    try:
        return getattr(config, name, None)
    except RuntimeError:  # transformers' AmbiguousGlobalPerLayerAttributeError
        return None


def _n_key_value_heads(config: Any, n_heads: int) -> int:
    """Return the heads that keys and values have: fewer than queries in grouped attention, one in multi-query."""
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1  # GPT-BigCode, and the first Falcons
    inner = getattr(config, "attn_config", None)  # of DBRX and MPT
    owners = ((config, "num_key_value_heads"), (config, "num_kv_heads"), (inner, "kv_n_heads"))
    return int(next((n for owner, name in owners if (n := _setting(owner, name))), n_heads))


def _outer_norms(
    model: nn.Module, layers: Sequence[LayerSummary], new_modules: Sequence[str]
) -> tuple[NormSummary, ...]:
    elsewhere = tuple(f"{path}." for path in (*(layer.path for layer in layers), *new_modules))
    return find_norms((path, m) for path, m in model.named_modules() if not f"{path}.".startswith(elsewhere))


def _has_attention_interface(model: "PreTrainedModel", layers: Sequence[LayerSummary]) -> bool:
    """Return whether attention is computed by functions that transformers looks up by name.

    Not all architectures that do so say so: T5 and Whisper do not. A layer without a map for keys of its own has no
    attention, or one whose keys are of another size than its values; layers may also differ in the sizes of heads.
    """
    if any(layer.roles.keys().isdisjoint(("key", "qkv")) for layer in layers):
        return False
    if getattr(model.config.get_text_config(), "is_heterogeneous", False):
        return False
    if getattr(model, "_supports_attention_backend", False):
        return True
    if layers[0].roles.keys().isdisjoint(("query", "qkv")):
        return False
    attention = model.get_submodule(attention_path(layers[0]))
    return hasattr(sys.modules[type(attention).__module__], "ALL_ATTENTION_FUNCTIONS")


def _modality(model: "PreTrainedModel") -> Modality:
    """Return what transformers calls the model's first input, in our words."""
    if model.main_input_name == "pixel_values":
        return "vision"
    return "speech" if model.main_input_name in ("input_features", "input_values") else "text"


def _is_decoder(model: "PreTrainedModel", layers: Sequence[LayerSummary]) -> bool:
    """Return what the attention says of itself; where it says nothing, whether there is a causal model alone."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    owned = (inner for inner in model.get_submodule(layers[0].path).modules() if hasattr(inner, "is_causal"))
    attention = next(owned, None)
    if attention is not None:
        return bool(attention.is_causal)
    kind = model.config.model_type
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def _own_maps(model: nn.Module, layers: Sequence[LayerSummary]) -> str:
    """Return the class of the layers' linear maps where transformers quantizes none of them, or an empty string."""
    inside = (module for layer in layers for module in model.get_submodule(layer.path).modules())
    kinds = {getattr(module, "source_cls", type(module)) for module in inside if linear_shape(module)}
    plain = any(kind is nn.Linear or kind.__name__ in ("Conv1D", "Linear4bit", "Linear8bitLt") for kind in kinds)
    return "" if plain else ", ".join(sorted(kind.__name__ for kind in kinds))


def logical_numel(modules: Iterable[nn.Module]) -> int:
    """Return the number of parameters as if none were quantized; shared ones count once."""
    sizes: dict[int, int] = {}
    for module in (inner for outer in modules for inner in outer.modules()):
        shape = linear_shape(module)
        for name, parameter in module.named_parameters(recurse=False):
            packed = shape is not None and name == "weight"
            sizes[id(parameter)] = shape[0] * shape[1] if packed and shape is not None else parameter.numel()
    return sum(sizes.values())


def n_positions(model: "PreTrainedModel") -> int | None:
    """Return the longest input in tokens; RoBERTa-like models lose the positions up to the padding's.

    Of an image, the patches that it is cut into; of sound, the positions that its features end up in.
    """
    config, modality = model.config.get_text_config(), _modality(model)
    if modality == "vision":
        return _n_patches(config)
    declared = getattr(config, "max_source_positions" if modality == "speech" else "max_position_embeddings", None)
    if declared is None:
        return None
    table = position_table(model)
    padding = None if table is None else table.padding_idx
    return int(declared) if padding is None else int(declared) - padding - 1


def _n_patches(config: Any) -> int | None:
    """Return how many patches an image of the declared size has, or None where the configuration does not say."""
    image, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    if image is None or patch is None:
        return None
    (height, width), (rows, columns) = sides(image), sides(patch)
    return (height // rows) * (width // columns)


def sides(size: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width of what a configuration gives as one side or as both."""
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def _n_target_positions(config: Any) -> int | None:
    """Return how many tokens the decoder of an encoder-decoder can write; None where positions are not limited."""
    limits = (getattr(config, name, None) for name in ("max_target_positions", "max_position_embeddings"))
    return next((int(limit) for limit in limits if limit is not None), None)
