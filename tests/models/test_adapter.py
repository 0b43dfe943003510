import pytest
import torch
from tiny_models import ARCHITECTURES, design, logits, perturb
from torch.nn import functional

from autopeft.errors import DesignError
from autopeft.models.attach import attach
from autopeft.models.base import Base

MODES = ("serial", "parallel")


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("mode", MODES)
def test_the_count_is_the_formula_and_step_0_is_the_base(
    bases: dict[str, Base], text: dict[str, torch.Tensor], name: str, mode: str
) -> None:
    base, width, size = bases[name], 32, 5
    with attach(base, design()):
        expected = logits(base.model, text)
    block = {"adapter": {"size": size, "mode": mode, "at": ["attention", "mlp"], "layers": [0, 1]}}
    with attach(base, design(block)) as attached:
        one = width * size + size + size * width + width
        assert sum(p.numel() for p in attached.groups["adapter"]) == one * 2 * 2
        assert torch.equal(logits(base.model, text), expected)
        perturb(attached)
        assert (logits(base.model, text) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "distilbert"])
@pytest.mark.parametrize("place", ["attention", "mlp"])
@pytest.mark.parametrize("mode", MODES)
def test_the_equations_of_the_papers(
    bases: dict[str, Base], text: dict[str, torch.Tensor], name: str, place: str, mode: str
) -> None:
    """Serial: h + s W_up f(W_down h). Parallel: h + s W_up f(W_down x), x the sublayer's input (He et al., table 1)."""
    base = bases[name]
    roles = base.summary.layers[1].roles
    first = roles["mlp_up"] if place == "mlp" else roles.get("query", roles.get("qkv"))
    last = roles["mlp_down" if place == "mlp" else "attention_output"]
    assert first is not None
    seen: dict[str, torch.Tensor] = {}
    block = {"size": 5, "mode": mode, "at": place, "layers": [1], "activation": "gelu", "scaling": 3}
    plain = base.model.get_submodule(last.path)
    handles = [
        base.model.get_submodule(first.path).register_forward_pre_hook(lambda _m, args: seen.update(x=args[0])),
        plain.register_forward_hook(lambda _m, _args, out: seen.update(h=out)),
    ]
    try:
        with attach(base, design({"adapter": block})) as attached:
            perturb(attached)
            handles.append(plain.register_forward_hook(lambda _m, _args, out: seen.update(out=out)))
            state = {key.partition(f"autopeft_adapter_{place}.")[2]: t for key, t in attached.state().items()}
            logits(base.model, text)
            source = seen["h"] if mode == "serial" else seen["x"]
            inner = functional.gelu(source @ state["down.weight"].T + state["down.bias"])
            expected = seen["h"] + 3 * (inner @ state["up.weight"].T + state["up.bias"])
            torch.testing.assert_close(seen["out"], expected)
            assert not torch.allclose(seen["out"], seen["h"])
    finally:
        for handle in handles:
            handle.remove()


def test_the_adapter_reads_what_lora_makes_of_the_same_map(bases: dict[str, Base]) -> None:
    """A serial adapter over a LoRA map must see W h + s B A h, and both must train."""
    base = bases["bert"]
    path = base.summary.layers[0].roles["mlp_down"].path
    blocks = [{"adapter": {"size": 5, "layers": [0]}}, {"lora": {"rank": 2, "roles": ["mlp_down"], "layers": [0]}}]
    with attach(base, design(*blocks)) as attached:
        perturb(attached)
        hidden = torch.randn(4, 48)
        wrapper = base.model.get_submodule(path)
        bottleneck = base.model.get_submodule(f"{base.summary.layers[0].path}.autopeft_adapter_mlp")
        with torch.no_grad():
            updated = wrapper.forward(hidden)  # without hooks
            assert not torch.allclose(updated, wrapper.base_layer(hidden))
            torch.testing.assert_close(wrapper(hidden), updated + bottleneck(updated))


def test_the_places_are_read_in_any_form(bases: dict[str, Base]) -> None:
    summary = bases["bert"].summary
    one, many = design({"adapter": {"size": 4, "at": "mlp"}}), design({"adapter": {"size": 4, "at": ["mlp"]}})
    assert one == many == design({"adapter": {"size": 4}})
    both = design({"adapter": {"size": 4, "at": ["mlp", "attention"], "layers": [0, 1, 2]}})
    assert both.resolve(summary).to_dict()["blocks"][0]["adapter"]["at"] == ["attention", "mlp"]
    assert both.describe() == "serial adapter 4 at attention and mlp in layers 0-2"
    assert both.serving(summary) == "autopeft"


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([{"size": 33}], "size <= hidden_size must hold, but got size=33, hidden_size=32"),
        (
            [{"size": 4, "layers": [0, 1]}, {"size": 8, "mode": "parallel", "layers": [1]}],
            "one adapter.*mlp of layer 1",
        ),
    ],
)
def test_what_cannot_be_is_refused(bases: dict[str, Base], blocks: list[dict[str, object]], message: str) -> None:
    with pytest.raises(DesignError, match=message):
        design(*({"adapter": block} for block in blocks)).check(bases["bert"].summary)


@pytest.mark.parametrize(
    "settings", [{"size": 0}, {"size": 4, "at": []}, {"size": 4, "at": "head"}, {"size": 4, "mode": "x"}]
)
def test_settings_are_validated_when_built(settings: dict[str, object]) -> None:
    with pytest.raises(DesignError, match=r"adapter\."):
        design({"adapter": settings})
