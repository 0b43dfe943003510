"""Roles: where the parts of a transformer layer are, read from the loaded model and not from its name.

This module does not know: experts (several maps with one role in a layer get none), and any stack but the
largest of a model that is no encoder-decoder (such as the vision tower of a language model).
"""

from collections import defaultdict

import torch
from torch import nn

from autopeft.errors import ModelError
from autopeft.models.norms import find_norms
from autopeft.spec.model import ROLES, LayerSummary, LinearSummary, Stack

_SUFFIXES: dict[str, tuple[str, ...]] = {
    "query": ("query", "q_proj", "q_b_proj", "q_proj.linear", "q_lin", "query_proj", "q", "wq", "Wq", "project_q"),
    "key": ("key", "k_proj", "k_proj.linear", "k_lin", "key_proj", "k", "wk", "Wk", "project_k"),
    "value": ("value", "v_proj", "v_proj.linear", "v_lin", "value_proj", "v", "wv", "Wv", "project_v"),
    "qkv": ("qkv", "c_attn", "qkv_proj", "query_key_value", "Wqkv", "in_proj"),
    "kv": ("kv_b_proj", "kv_proj"),
    "attention_output": (
        "attention.output.dense",
        "attention.dense",
        "self_attention.dense",
        "self_attn.dense",
        "attn.c_proj",
        "attn.proj",
        "multi_head_attention.dense",
        "attention_out",
        "o_proj",
        "o_proj.linear",
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
        "ffn.0",
        "ff.layer_1",
        "ffn.proj_up",
        "feed_forward.w3",
        "feed_forward.intermediate",
        "feed_forward.dense.dense",
        "shared_mlp.input_linear",
        "mlp.dense1",
        "w_in.w_1",
    ),
    "mlp_gate": ("gate_proj", "wi_0", "ffn.proj_up_gate", "feed_forward.w1", "w_in.w_0"),
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
        "ffn.2",
        "ff.layer_2",
        "ffn.proj_down",
        "feed_forward.w2",
        "feed_forward.output",
        "shared_mlp.output_linear",
        "mlp.dense2",
        "ffn.w_out",
    ),
}
"""Ends of module paths inside a layer, by role; the longest end that fits decides."""

_WITHOUT_ROLES = frozenset({"indexer", "router", "router_mlp", "compressor", "conv"})
"""Names of modules that choose tokens or experts, or mix neighbours: none of their maps has a role."""
_ATTENTION = frozenset({"self_attn", "attn", "attention", "linear_attn"})
_OTHER_INPUTS = ("vision", "visual", "audio", "image")
"""What the names of modules begin with that read something else than text."""
_POSITION_TABLES = ("position_embeddings", "embed_positions", "wpe")
_CROSS_ATTENTION = {
    "crossattention": "attention",
    "encoder_attn": "self_attn",
    "EncDecAttention": "SelfAttention",
    "cross_attn": "self_attn",
}
"""Names of modules that attend to another stack, and what a self-attention with the same maps is called."""


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

    An encoder-decoder's are those of the encoder, then those of the decoder.

    Raises:
        ModelError: The model has no stack of equal layers, or none of their maps has a known role.
    """
    fallback = _peft_targets(model)
    stacks = _encoder_and_decoder(model) or [("", *_largest_stack(model))]
    layers = tuple(
        LayerSummary(
            path=f"{path}.{index}",
            roles=_layer_roles(f"{path}.{index}", layer, fallback),
            stack=name,
            norms=find_norms((f"{path}.{index}.{inner}", module) for inner, module in layer.named_modules()),
        )
        for name, path, stack in stacks
        for index, layer in enumerate(stack)
    )
    if not any(layer.roles for layer in layers):
        first = stacks[0][2][0]
        if any(state_spaces(layer) for layer in stacks[0][2]):
            raise ModelError(
                f"a layer must have attention or an MLP, but those of {type(model).__name__} have state spaces alone, "
                "whose kernels pass by what is attached; take a transformer"
            )
        names = [name for name, module in first.named_modules() if linear_shape(module)]
        raise ModelError(
            f"the linear maps of a layer must have names with a known role, but {type(model).__name__} has "
            f"{', '.join(names)}; add their ends to autopeft/models/roles.py"
        )
    return layers


def attention_path(layer: LayerSummary) -> str:
    """Return the path of the self-attention module: the parent of the query map."""
    linear = layer.roles.get("query") or layer.roles["qkv"]
    return linear.path.rpartition(".")[0]


def stack_path(layer: LayerSummary) -> str:
    """Return the path of the module whose list of layers a layer is in."""
    return ".".join(layer.path.split(".")[:-2])


def position_table(model: nn.Module) -> nn.Embedding | None:
    """Return the table of learned absolute positions, or None where positions are computed."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding) and path.rpartition(".")[2] in _POSITION_TABLES:
            return module
    return None


def _encoder_and_decoder(model: nn.Module) -> list[tuple[Stack, str, nn.ModuleList]]:
    """Return the stacks of an encoder-decoder, each by name with its path: siblings that both have layers."""
    for parent, module in model.named_modules():
        sides = dict(module.named_children())
        if "encoder" not in sides or "decoder" not in sides:
            continue
        inside = parent and f"{parent}."
        encoder, decoder = _stack_in(sides["encoder"]), _stack_in(sides["decoder"])
        if encoder is not None and decoder is not None:
            return [
                ("encoder", f"{inside}encoder.{encoder[0]}", encoder[1]),
                ("decoder", f"{inside}decoder.{decoder[0]}", decoder[1]),
            ]
    return []


def _largest_stack(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the list of layers that holds the most linear weights, with its path; of text where there is text."""
    reads_text = getattr(model, "main_input_name", "input_ids") == "input_ids"
    found = (_stack_in(model, without=_OTHER_INPUTS) if reads_text else None) or _stack_in(model)
    if found is None:
        names = [name for name, module in model.named_modules() if linear_shape(module)]
        raise ModelError(
            "a model must have a list of equal transformer layers with linear maps, but "
            f"{type(model).__name__} has none; its linear maps: {', '.join(names) or 'none'}; take a transformer"
        )
    return found


def _stack_in(model: nn.Module, *, without: tuple[str, ...] = ()) -> tuple[str, nn.ModuleList] | None:
    """Return the list of layers that holds the most linear weights, outside of modules with some names, or None."""
    best: tuple[str, nn.ModuleList] | None = None
    most = 0
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or not _is_stack(module):
            continue
        if without and any(part.startswith(without) for part in path.split(".")):
            continue
        shapes = [shape for inner in module.modules() if (shape := linear_shape(inner))]
        size = sum(n_in * n_out for n_in, n_out in shapes)
        if size > most:
            best, most = (path, module), size
    return best


def _is_stack(modules: nn.ModuleList) -> bool:
    """Return whether a list holds the layers of a model: of one class, or each of some class of layers (Jamba)."""
    names = {type(module).__name__ for module in modules}
    return len(names) == 1 or (bool(names) and all(name.endswith(("Layer", "Block")) for name in names))


def state_spaces(layer: nn.Module) -> tuple[str, ...]:
    """Return the paths of state-space mixers: their kernels read weights of maps themselves, past what is attached."""
    return tuple(path for path, module in layer.named_modules() if {"A_log", "D"} <= module._parameters.keys())


def _layer_roles(path: str, layer: nn.Module, fallback: dict[str, str]) -> dict[str, LinearSummary]:
    found: defaultdict[str, list[LinearSummary]] = defaultdict(list)
    passed = tuple(f"{inner}." for inner in state_spaces(layer))
    for name, module in layer.named_modules():
        shape = None if name.startswith(passed) else linear_shape(module)
        role = None if shape is None else _role(name, fallback)
        if shape is not None and role in ROLES:
            linear = LinearSummary(
                path=f"{path}.{name}",
                in_features=shape[0],
                out_features=shape[1],
                # a quantized layer has the class that it replaced: what is legal must not depend on the storage
                transposed=getattr(module, "source_cls", type(module)).__name__ == "Conv1D",
                has_bias=isinstance(module.bias, torch.Tensor),
            )
            found[role].append(linear)
    return {role: found[role][0] for role in ROLES if len(found[role]) == 1}


def _role(name: str, fallback: dict[str, str]) -> str | None:
    """Return the role of a linear map by its path in a layer; a cross-attention's are those of attention, crossed."""
    parts = name.split(".")
    if not _WITHOUT_ROLES.isdisjoint(parts) or (parts[-1] == "gate_proj" and not _ATTENTION.isdisjoint(parts)):
        return None
    crossed = not _CROSS_ATTENTION.keys().isdisjoint(parts)
    role = _role_by_suffix(".".join(_CROSS_ATTENTION.get(part, part) for part in parts)) or fallback.get(parts[-1])
    return f"cross_{role}" if crossed else role


def _role_by_suffix(name: str) -> str | None:
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
