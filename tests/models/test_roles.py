import pytest
import torch
from tiny_models import ARCHITECTURES, inputs_for
from torch import nn

from autopeft.errors import ModelError
from autopeft.models.base import Base
from autopeft.models.roles import attention_path, find_layers, linear_shape, position_table
from autopeft.models.summary import logical_numel

SPLIT = ("query", "key", "value", "attention_output", "mlp_up", "mlp_down")
CROSS = ("cross_query", "cross_key", "cross_value", "cross_attention_output")
GATED = (*SPLIT[:-1], "mlp_gate", "mlp_down")
ROLES = (
    dict.fromkeys(ARCHITECTURES, SPLIT)
    | dict.fromkeys(("llama", "qwen", "mistral", "gemma"), GATED)
    | {"gpt2": ("qkv", "attention_output", "mlp_up", "mlp_down")}
)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_linear_map_of_a_layer_has_one_role(bases: dict[str, Base], name: str) -> None:
    base = bases[name]
    for layer in base.summary.layers:
        expected = (*ROLES[name][:4], *CROSS, *ROLES[name][4:]) if layer.stack == "decoder" else ROLES[name]
        assert tuple(layer.roles) == expected
        module = base.model.get_submodule(layer.path)
        maps = {f"{layer.path}.{path}": shape for path, m in module.named_modules() if (shape := linear_shape(m))}
        # DeBERTa's maps of relative positions are neither of query nor of key
        maps = {path: shape for path, shape in maps.items() if ".pos_" not in path}
        assert {role.path: (role.in_features, role.out_features) for role in layer.roles.values()} == maps


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_roles_are_what_their_names_say(bases: dict[str, Base], name: str) -> None:
    """Zeroing the output maps of a layer must leave the residual stream alone; shapes tell up from down."""
    for layer in bases[name].summary.layers:
        up, down = layer.roles["mlp_up"], layer.roles["mlp_down"]
        assert (up.in_features, up.out_features) == (down.out_features, down.in_features)
        assert up.out_features > up.in_features
        out = layer.roles["attention_output"]
        assert attention_path(layer) in out.path or attention_path(layer).rpartition(".")[0] in out.path


@pytest.mark.parametrize("name", ["t5", "whisper"])
def test_the_layers_of_an_encoder_decoder_are_those_of_both_stacks(bases: dict[str, Base], name: str) -> None:
    """The maps with a cross role must read what the encoder gives, and no other map of the decoder."""
    base = bases[name]
    assert [layer.stack for layer in base.summary.layers] == ["encoder", "encoder", "decoder", "decoder"]
    assert base.summary.is_encoder_decoder
    assert set(CROSS) < set(base.summary.roles)
    read: dict[str, torch.Tensor] = {}
    maps = [(role, linear) for layer in base.summary.layers[2:] for role, linear in layer.roles.items()]
    hooks = [
        base.model.get_submodule(linear.path).register_forward_pre_hook(
            lambda _module, args, path=linear.path: read.update({path: args[0]})
        )
        for _, linear in maps
    ]
    with torch.no_grad():
        encoded = base.model(**inputs_for(name)).encoder_last_hidden_state
    for hook in hooks:
        hook.remove()
    for role, linear in maps:
        seen = read[linear.path]
        assert (role in ("cross_key", "cross_value")) == (seen.shape == encoded.shape and torch.equal(seen, encoded))


@pytest.mark.parametrize(
    ("name", "modality"), [("bert", "text"), ("t5", "text"), ("vit", "vision"), ("whisper", "speech")]
)
def test_what_goes_in(bases: dict[str, Base], name: str, modality: str) -> None:
    assert bases[name].summary.modality == modality


def test_the_positions_of_images_and_sound(bases: dict[str, Base]) -> None:
    """As many as the layers see, without what the model puts before them."""
    for name in ("vit", "dinov2"):
        base = bases[name]
        embedded = base.model.base_model.embeddings(inputs_for(name)["pixel_values"])
        assert base.summary.n_positions == embedded.shape[1] - 1  # the classes' token
    whisper = bases["whisper"]
    encoded = whisper.model.model.encoder(inputs_for("whisper")["input_features"]).last_hidden_state
    assert whisper.summary.n_positions == encoded.shape[1]
    assert (whisper.summary.n_target_positions, bases["t5"].summary.n_target_positions) == (40, None)
    assert all(base.summary.n_target_positions is None for name, base in bases.items() if name != "whisper")


def test_the_summary_counts_what_the_model_has(bases: dict[str, Base]) -> None:
    for base in bases.values():
        summary = base.summary
        assert summary.n_parameters + summary.n_head_parameters == sum(p.numel() for p in base.model.parameters())
        head = [p for path in summary.new_modules for p in base.model.get_submodule(path).parameters()]
        assert summary.n_head_parameters == sum(p.numel() for p in head)
        assert bool(head) == bool(base.head.labels)


def test_shared_parameters_count_once() -> None:
    first, second = nn.Linear(3, 5), nn.Linear(3, 5)
    second.weight = first.weight
    assert logical_numel([nn.Sequential(first, second)]) == 3 * 5 + 5 + 5


def test_positions_exclude_those_before_the_padding_token(bases: dict[str, Base]) -> None:
    assert bases["bert"].summary.n_positions == 40
    assert bases["roberta"].summary.n_positions == 40 - 1 - 1
    assert position_table(bases["llama"].model) is None


class _Layer(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.add_module(name, nn.Linear(4, 4))


def test_unknown_structures_are_refused_with_the_names_seen() -> None:
    with pytest.raises(ModelError, match=r"layers with linear maps.*decode"):
        find_layers(nn.ModuleDict({"decode": nn.Linear(2, 2)}))
    with pytest.raises(ModelError, match=r"known role.*mystery"):
        find_layers(nn.ModuleDict({"layers": nn.ModuleList([_Layer("mystery"), _Layer("mystery")])}))


def test_structure_decides_and_not_the_name_of_the_model() -> None:
    model = nn.ModuleDict({"anything": nn.ModuleList([_Layer("q_proj"), _Layer("q_proj")])})
    assert [list(layer.roles) for layer in find_layers(model)] == [["query"], ["query"]]


def test_a_role_with_several_maps_is_left_out() -> None:
    """Experts: one of several maps must not pass for the layer's."""
    layer = nn.ModuleDict({"experts": nn.ModuleList([_Layer("up_proj"), _Layer("up_proj")]), "q_proj": nn.Linear(4, 4)})
    model = nn.ModuleDict({"layers": nn.ModuleList([layer, layer])})
    assert all(list(found.roles) == ["query"] for found in find_layers(model))


def test_the_meta_device_changes_nothing() -> None:
    with torch.device("meta"):
        assert linear_shape(nn.Linear(3, 5)) == (3, 5)
