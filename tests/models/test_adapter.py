import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import ARCHITECTURES, BERT_LIKE, HEAD, design, inputs_for, logits, perturb
from torch.nn import functional

from autopeft.errors import DesignError
from autopeft.models.artifact import load, pack
from autopeft.models.attach import Attached, attach
from autopeft.models.base import Base, load_base

MODES = ("serial", "parallel")
LAST = {"attention": "attention_output", "cross_attention": "cross_attention_output", "mlp": "mlp_down"}
FIRST = {"attention": ("query", "qkv"), "cross_attention": ("cross_query",), "mlp": ("mlp_up",)}


class Watched:
    """What goes into a sublayer, what its last map gives, and what comes out with the design on it."""

    def __init__(self, base: Base, layer: int, place: str) -> None:
        roles = base.summary.layers[layer].roles
        first = next(roles[role] for role in FIRST[place] if role in roles)
        self.base, self.seen = base, dict[str, torch.Tensor]()
        self._last = base.model.get_submodule(roles[LAST[place]].path)
        self._handles = [
            base.model.get_submodule(first.path).register_forward_pre_hook(lambda _m, args: self._see("x", args[0])),
            self._last.register_forward_hook(lambda _m, _args, out: self._see("h", out)),
        ]

    def _see(self, name: str, tensor: torch.Tensor) -> None:
        self.seen[name] = tensor

    def __enter__(self) -> "Watched":
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()

    def run(self, attached: Attached, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return x, h and the sublayer's output after a forward of the perturbed design."""
        perturb(attached)
        self._handles.append(self._last.register_forward_hook(lambda _m, _args, out: self._see("out", out)))
        logits(self.base.model, inputs)
        return self.seen


def own(attached: Attached, name: str, layer: int = 1) -> dict[str, torch.Tensor]:
    """Return the tensors of the adapter that a name has in a layer, by their names in it."""
    prefix = f"{attached.base.summary.layers[layer].path}.{name}."
    return {key.removeprefix(prefix): tensor for key, tensor in attached.state().items() if key.startswith(prefix)}


def adds(state: dict[str, torch.Tensor], read: torch.Tensor) -> torch.Tensor:
    """W_up f(W_down x) with biases, f GELU."""
    inner = functional.gelu(read @ state["down.weight"].T + state["down.bias"])
    return inner @ state["up.weight"].T + state["up.bias"]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("mode", MODES)
def test_step_0_is_the_base_and_later_ones_are_not(bases: dict[str, Base], name: str, mode: str) -> None:
    base, inputs = bases[name], inputs_for(name)
    with attach(base, design()):
        expected = logits(base.model, inputs)
    block = {"adapter": {"size": 5, "mode": mode, "at": ["attention", "mlp"], "layers": [0, 1]}}
    with attach(base, design(block)) as attached:
        assert torch.equal(logits(base.model, inputs), expected)
        perturb(attached, only=attached.groups["adapter"])
        assert (logits(base.model, inputs) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "vit", "t5"])
@pytest.mark.parametrize("place", ["attention", "mlp"])
@pytest.mark.parametrize("mode", MODES)
def test_the_equations_of_the_papers(bases: dict[str, Base], name: str, place: str, mode: str) -> None:
    """Serial: h + s W_up f(W_down h). Parallel: h + s W_up f(W_down x), x the sublayer's input (He et al., table 1)."""
    base = bases[name]
    block = {"size": 5, "mode": mode, "at": place, "layers": [1], "activation": "gelu", "scaling": 3}
    with Watched(base, 1, place) as watched, attach(base, design({"adapter": block})) as attached:
        seen = watched.run(attached, inputs_for(name))
        expected = seen["h"] + 3 * adds(
            own(attached, f"autopeft_adapter_{place}"), seen[{"serial": "h"}.get(mode, "x")]
        )
        torch.testing.assert_close(seen["out"], expected)
        assert not torch.allclose(seen["out"], seen["h"])


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_houlsby_and_pfeiffer_sit_before_the_residual_sum_and_the_norm(bases: dict[str, Base], name: str) -> None:
    """Post-norm: LN(x + h + a(h)), Houlsby et al. figure 2. Pre-norm: x + h + a(h)."""
    base, inputs = bases[name], inputs_for(name)
    layer = base.model.get_submodule(base.summary.layers[2].path)
    seen: dict[str, torch.Tensor] = {}
    with attach(base, design({"adapter": {"size": 5, "layers": [2], "activation": "gelu"}})) as attached:
        perturb(attached)
        norm = layer.output.LayerNorm if name == "bert" else layer.post_attention_layernorm
        residual = layer.output if name == "bert" else layer
        last = base.model.get_submodule(base.summary.layers[2].roles["mlp_down"].path)
        handles = [
            norm.register_forward_pre_hook(lambda _m, args: seen.update(norm_in=args[0])),
            residual.register_forward_hook(
                lambda _m, args, out: seen.update(args=args[-1], out=out[0] if isinstance(out, tuple) else out)
            ),
            last.register_forward_hook(lambda _m, _args, out: seen.update(sublayer=out)),
        ]
        try:
            logits(base.model, inputs)
        finally:
            for handle in handles:
                handle.remove()
        if name == "bert":  # the output module gets the MLP's activations and the residual
            torch.testing.assert_close(seen["norm_in"], seen["args"] + seen["sublayer"])
        else:  # the second norm reads the residual stream that the MLP's output is added to
            torch.testing.assert_close(seen["out"], seen["norm_in"] + seen["sublayer"])


@pytest.mark.parametrize("place", ["attention", "mlp"])
def test_a_serial_and_a_parallel_one_do_not_read_each_other(bases: dict[str, Base], place: str) -> None:
    """h + S(h) + P(x), in whatever order the blocks are given."""
    base, text = bases["bert"], inputs_for("bert")
    blocks = [
        {"adapter": {"size": 5, "mode": "parallel", "at": place, "activation": "gelu"}},
        {"adapter": {"size": 3, "mode": "serial", "at": place, "activation": "gelu"}},
    ]
    assert design(*blocks) == design(*reversed(blocks))
    with Watched(base, 1, place) as watched, attach(base, design(*blocks)) as attached:
        seen = watched.run(attached, text)
        serial = adds(own(attached, f"autopeft_adapter_{place}"), seen["h"])
        parallel = adds(own(attached, f"autopeft_adapter_{place}_parallel"), seen["x"])
        torch.testing.assert_close(seen["out"], seen["h"] + serial + parallel)
        assert min(serial.abs().max(), parallel.abs().max()) > 1e-3
        assert attached.n_trainable - base.summary.n_head_parameters == 3 * (2 * 32 * (5 + 3) + 5 + 3 + 2 * 32)


@pytest.mark.parametrize("mode", MODES)
def test_a_gate_multiplies_by_the_mean_over_the_tokens(bases: dict[str, Base], mode: str) -> None:
    """UniPELT (Mao et al. 2022, section 3.2): the adapter's direct input decides how much of it is let through."""
    base, text = bases["bert"], inputs_for("bert")
    block = {"size": 5, "mode": mode, "gate": True, "activation": "gelu"}
    with Watched(base, 1, "mlp") as watched, attach(base, design({"adapter": block})) as attached:
        seen, state = watched.run(attached, text), own(attached, "autopeft_adapter_mlp")
        read = seen["h" if mode == "serial" else "x"]
        for row, n_tokens in enumerate(text["attention_mask"].sum(dim=1)):
            gates = torch.sigmoid(read[row] @ state["gate.linear.weight"].T + state["gate.linear.bias"])
            expected = seen["h"][row] + gates[:n_tokens].mean() * adds(state, read[row])
            torch.testing.assert_close(seen["out"][row], expected)


def test_a_gate_in_a_language_model_tells_no_token_of_later_ones(bases: dict[str, Base]) -> None:
    base, text = bases["qwen"], inputs_for("qwen")
    with attach(base, design({"adapter": {"size": 5, "gate": True}})) as attached:
        perturb(attached)
        whole = logits(base.model, text)[:1, :5]
        torch.testing.assert_close(logits(base.model, {k: t[:1, :5] for k, t in text.items()}), whole)


def test_experts_are_drawn_in_training_and_averaged_for_inference(bases: dict[str, Base], tmp_path: Any) -> None:
    """AdaMix (Wang et al. 2022): a random map down and a random map up in training, the mean of all weights else."""
    base, text = bases["bert"], inputs_for("bert")
    block = {"size": 5, "experts": 3, "activation": "gelu", "layers": [1]}
    with Watched(base, 1, "mlp") as watched, attach(base, design({"adapter": block})) as attached:
        seen, state = watched.run(attached, text), own(attached, "autopeft_adapter_mlp")
        torch.testing.assert_close(seen["out"], seen["h"] + adds({k: t.mean(0) for k, t in state.items()}, seen["h"]))
        answer = logits(base.model, text)
        assert torch.equal(logits(base.model, text), answer)

        bottleneck = base.model.get_submodule(f"{base.summary.layers[1].path}.autopeft_adapter_mlp").train()
        pairs = {
            pair: adds({k: t[pair["du".index(k[0])]] for k, t in state.items()}, seen["h"])
            for pair in itertools.product(range(3), range(3))
        }
        drawn = set()
        for seed in range(60):
            torch.manual_seed(seed)
            added = bottleneck(seen["h"])
            (pair,) = [pair for pair, expected in pairs.items() if torch.allclose(added, expected, atol=1e-5)]
            torch.manual_seed(seed)
            assert torch.equal(bottleneck(seen["h"]), added)  # a function of torch's generator alone
            drawn.add(pair)
        assert drawn == set(pairs)

        for name, content in pack(attached, metadata={}).items():
            (tmp_path / name).write_bytes(content)
        exported = attached.exported_tensors()
        place = f"{base.summary.layers[1].path}.autopeft_adapter_mlp"
        assert torch.equal(exported[f"{place}.down.weight"], state["down.weight"].mean(0))  # one plain adapter
    torch.testing.assert_close(logits(load(tmp_path)[0], text), answer, atol=1e-5, rtol=1e-5)


def test_every_expert_gets_gradients_over_some_steps(bases: dict[str, Base]) -> None:
    base, text = bases["bert"], inputs_for("bert")
    with attach(base, design({"adapter": {"size": 5, "experts": 4, "activation": "gelu"}})) as attached:
        perturb(attached)
        base.model.train()
        torch.manual_seed(0)
        for _ in range(20):
            base.model(**text, labels=torch.tensor([0, 1, 0])).loss.backward()
        for parameter in attached.groups["adapter"]:
            assert parameter.grad is not None
            assert bool((parameter.grad.flatten(1).abs().sum(dim=1) > 0).all())


def test_a_place_that_only_some_layers_have_is_taken_where_it_is(bases: dict[str, Base]) -> None:
    base, inputs = bases["t5"], inputs_for("t5")
    block = {"size": 5, "at": ["cross_attention", "mlp"], "mode": "parallel", "activation": "gelu"}
    with Watched(base, 3, "cross_attention") as watched, attach(base, design({"adapter": block})) as attached:
        paths = {name.partition(".autopeft_adapter_")[0] for name in attached.state() if "cross_attention" in name}
        assert paths == {layer.path for layer in base.summary.layers if layer.stack == "decoder"}
        seen = watched.run(attached, inputs)
        state = own(attached, "autopeft_adapter_cross_attention", layer=3)
        torch.testing.assert_close(seen["out"], seen["h"] + adds(state, seen["x"]))
        assert seen["x"].shape[1] == inputs["decoder_input_ids"].shape[1]  # the decoder's text, not the encoder's


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
    assert both.serving(summary) == "autopeft"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"at": ["attention", "mlp"]}, "serial adapter 4 after attention and MLP"),
        ({}, "serial adapter 4 after MLP"),
        ({"mode": "parallel", "scaling": 4}, "parallel adapter 4 (scaled by 4) beside MLP"),
        ({"gate": True, "experts": 3}, "serial adapter 4 (gated, 3 experts) after MLP"),
    ],
)
def test_it_is_said_in_words(settings: dict[str, Any], words: str) -> None:
    assert design({"adapter": {"size": 4, **settings}}).describe() == words


@pytest.mark.parametrize(
    ("name", "blocks", "message"),
    [
        ("bert", [{"size": 33}], "size <= hidden_size must hold, but got size=33, hidden_size=32; lower adapter.size"),
        (
            "bert",
            [{"size": 4, "layers": [0, 1]}, {"size": 8, "layers": [1]}],
            "one serial and one parallel adapter, but two serial ones want mlp of layer 1; .*or make one .*parallel",
        ),
        (
            "bert",
            [{"size": 4, "at": ["mlp", "cross_attention"]}],
            "serial adapter at cross_attention needs a layer with the role cross_attention_output, but the chosen "
            "layers have only query, .*; change adapter.at or adapter.layers",
        ),
        (
            "t5",
            [{"size": 4, "at": "cross_attention", "mode": "parallel", "layers": [0, 1]}],
            "needs a layer with the role cross_attention_output and cross_query, but",
        ),
    ],
)
def test_what_cannot_be_is_refused(
    bases: dict[str, Base], name: str, blocks: list[dict[str, object]], message: str
) -> None:
    with pytest.raises(DesignError, match=message):
        design(*({"adapter": block} for block in blocks)).check(bases[name].summary)


@pytest.mark.parametrize(
    "settings",
    [
        {"size": 0},
        {"size": 4, "at": []},
        {"size": 4, "at": "head"},
        {"size": 4, "mode": "x"},
        {"size": 4, "experts": 0},
        {"size": 4, "gate": "half"},
        {"size": 4, "scaling": 0},
    ],
)
def test_settings_are_validated_when_built(settings: dict[str, object]) -> None:
    with pytest.raises(DesignError, match=r"adapter\."):
        design({"adapter": settings})


@pytest.mark.parametrize("shared", [True, False])
def test_a_parallel_adapter_reads_the_text_where_a_map_reads_positions_too(tmp_path: Path, shared: bool) -> None:
    """DeBERTa-v3 shares its query map with the table of distances: the map's last input is not the text."""
    torch.manual_seed(0)
    config = transformers.DebertaV2Config(
        **BERT_LIKE | {"num_hidden_layers": 2},
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=8,
        share_att_key=shared,
        pooler_hidden_size=32,
    )
    transformers.DebertaV2Model(config).save_pretrained(tmp_path)
    base, inputs = load_base(str(tmp_path), HEAD), inputs_for("deberta")
    layer = base.summary.layers[1]
    seen: dict[str, torch.Tensor] = {}
    made = design({"adapter": {"size": 3, "mode": "parallel", "at": "attention", "activation": "gelu", "layers": [1]}})
    with attach(base, made) as attached:
        perturb(attached)
        last = base.model.get_submodule(layer.roles["attention_output"].path)
        text = base.model.get_submodule(layer.path)
        handles = [
            text.register_forward_pre_hook(lambda _m, args: seen.update(x=args[0])),
            last.register_forward_hook(lambda _m, _args, out: seen.update(out=out)),
        ]
        logits(base.model, inputs)
        linear = functional.linear(_input_of(last, base, inputs), last.weight, last.bias)
        expected = linear + adds(own(attached, "autopeft_adapter_attention"), seen["x"])
        torch.testing.assert_close(seen["out"], expected, atol=1e-5, rtol=1e-5)
        for handle in handles:
            handle.remove()


def _input_of(module: torch.nn.Module, base: Base, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return what a module reads in a forward."""
    read: list[torch.Tensor] = []
    handle = module.register_forward_pre_hook(lambda _m, args: read.append(args[0]))
    logits(base.model, inputs)
    handle.remove()
    return read[0]
