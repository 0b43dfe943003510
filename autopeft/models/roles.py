"""Roles: where the parts of a transformer layer are, read from the loaded model and not from its name.

This module does not know: experts (several maps with one role in a layer get none), cross-attention
(only self-attention has roles), and the smaller stack of a model that has two.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from inspect import signature
from typing import TYPE_CHECKING

from torch import nn

from autopeft.errors import ModelError
from autopeft.spec.model import ROLES, LayerSummary, LinearSummary, Modality, ModelSummary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SUFFIXES: dict[str, tuple[str, ...]] = {
    "query": ("query", "q_proj", "q_lin", "query_proj", "q", "wq"),
    "key": ("key", "k_proj", "k_lin", "key_proj", "k", "wk"),
    "value": ("value", "v_proj", "v_lin", "value_proj", "v", "wv"),
    "qkv": ("qkv", "c_attn", "qkv_proj", "query_key_value", "Wqkv", "in_proj"),
    "attention_output": (
        "attention.output.dense",
        "attention.dense",
        "self_attention.dense",
        "self_attn.dense",
        "attn.c_proj",
        "attn.proj",
        "o_proj",
        "out_proj",
        "out_lin",
        "attn.o",
        "SelfAttention.o",
        "attn.Wo",
        "wo_proj",
    ),
    "mlp_up": (
        "intermediate.dense",
        "up_proj",
        "gate_up_proj",
        "mlp.c_fc",
        "fc1",
        "lin1",
        "dense_h_to_4h",
        "wi",
        "wi_1",
        "mlp.Wi",
        "fc_in",
        "ffn",
    ),
    "mlp_gate": ("gate_proj", "wi_0"),
    "mlp_down": (
        "output.dense",
        "down_proj",
        "mlp.c_proj",
        "fc2",
        "lin2",
        "dense_4h_to_h",
        "DenseReluDense.wo",
        "mlp.Wo",
        "fc_out",
        "ffn_output",
    ),
}
"""Ends of module paths inside a layer, by role; the longest end that fits decides."""

_POSITION_TABLES = ("position_embeddings", "embed_positions", "wpe")
_CROSS_ATTENTION = ("crossattention", "encoder_attn", "EncDecAttention", "cross_attn")


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """Return (in_features, out_features) of a linear map, or None where the module is not one.

    Quantized linear maps are `nn.Linear` too, and keep their logical shape; GPT-2's `Conv1D` is a
    linear map with a transposed weight.
    """
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if type(module).__name__ == "Conv1D" and isinstance(module.weight, nn.Parameter):
        n_in, n_out = module.weight.shape
        return n_in, n_out
    return None


def find_layers(model: nn.Module) -> tuple[LayerSummary, ...]:
    """Return the transformer layers from the input upwards, with a role for each linear map that has one.

    Raises:
        ModelError: The model has no stack of equal layers, or none of their maps has a known role.
    """
    path, stack = _largest_stack(model)
    fallback = _peft_targets(model)
    layers = tuple(
        LayerSummary(path=f"{path}.{index}", roles=_layer_roles(f"{path}.{index}", layer, fallback))
        for index, layer in enumerate(stack)
    )
    if not any(layer.roles for layer in layers):
        names = [name for name, module in stack[0].named_modules() if linear_shape(module)]
        raise ModelError(
            f"the linear maps of a layer must have names with a known role, but {type(model).__name__} has "
            f"{', '.join(names)}; add their ends to autopeft/models/roles.py"
        )
    return layers


def attention_path(layer: LayerSummary) -> str:
    """Return the path of the self-attention module: the parent of the query map."""
    linear = layer.roles.get("query") or layer.roles["qkv"]
    return linear.path.rpartition(".")[0]


def position_table(model: nn.Module) -> nn.Embedding | None:
    """Return the table of learned absolute positions, or None where positions are computed."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding) and path.rpartition(".")[2] in _POSITION_TABLES:
            return module
    return None


def _largest_stack(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the list of equal-class layers that holds the most linear weights, with its path."""
    best: tuple[str, nn.ModuleList] | None = None
    most = 0
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len({type(layer) for layer in module}) != 1:
            continue
        shapes = [shape for inner in module.modules() if (shape := linear_shape(inner))]
        size = sum(n_in * n_out for n_in, n_out in shapes)
        if size > most:
            best, most = (path, module), size
    if best is None:
        names = [name for name, module in model.named_modules() if linear_shape(module)]
        raise ModelError(
            "a model must have a list of equal transformer layers with linear maps, but "
            f"{type(model).__name__} has none; its linear maps: {', '.join(names) or 'none'}"
        )
    return best


def _layer_roles(path: str, layer: nn.Module, fallback: dict[str, str]) -> dict[str, LinearSummary]:
    found: defaultdict[str, list[LinearSummary]] = defaultdict(list)
    for name, module in layer.named_modules():
        shape = linear_shape(module)
        if shape is None or any(part in _CROSS_ATTENTION for part in name.split(".")):
            continue
        role = _role(name) or fallback.get(name.rpartition(".")[2])
        if role is not None:
            linear = LinearSummary(path=f"{path}.{name}", in_features=shape[0], out_features=shape[1])
            found[role].append(linear)
    return {role: found[role][0] for role in ROLES if len(found[role]) == 1}


def _role(name: str) -> str | None:
    """Return the role whose longest suffix ends `name` at a dot, or None."""
    fitting = [
        (len(suffix), role)
        for role, suffixes in _SUFFIXES.items()
        for suffix in suffixes
        if name == suffix or name.endswith(f".{suffix}")
    ]
    return max(fitting)[1] if fitting else None


def _peft_targets(model: nn.Module) -> dict[str, str]:
    """Return roles by module name as peft knows them for this model type, for names that the table lacks.

    peft lists the query and value maps, in this order, or the one fused map.
    """
    from autopeft.models.peft_gate import default_targets

    names = default_targets(getattr(getattr(model, "config", None), "model_type", ""))
    if len(names) == 1:
        return {names[0]: "qkv"}
    return dict(zip(names, ("query", "value"), strict=False)) if len(names) == 2 else {}


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
    n_heads = int(config.num_attention_heads)
    layers, inputs = find_layers(model), signature(model.base_model.forward).parameters
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
        n_key_value_heads=int(getattr(config, "num_key_value_heads", None) or n_heads),
        head_size=int(getattr(config, "head_dim", None) or config.hidden_size // n_heads),
        vocabulary_size=int(getattr(config, "vocab_size", 0)),
        n_positions=n_positions(model),
        has_attention_interface=bool(getattr(model, "_supports_attention_backend", False)),
        takes_cache="past_key_values" in inputs,
        # the text of an encoder-decoder enters twice
        takes_embeddings="inputs_embeds" in inputs and not model.config.is_encoder_decoder,
        is_decoder=_is_decoder(model, layers),
        modality=_modality(model),
        layers=layers,
    )


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
    """Return the longest input in tokens; RoBERTa-like models lose the positions up to the padding's."""
    declared = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if declared is None:
        return None
    table = position_table(model)
    padding = None if table is None else table.padding_idx
    return int(declared) if padding is None else int(declared) - padding - 1
