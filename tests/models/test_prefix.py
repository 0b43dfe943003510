import dataclasses
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from tiny_models import (
    ARCHITECTURES,
    CONFIGS,
    HEAD,
    HEADS,
    LANGUAGE_HEAD,
    LLAMA_LIKE,
    design,
    inputs_for,
    logits,
    perturb,
    save,
)

from autopeft.errors import DesignError
from autopeft.models.artifact import load, pack
from autopeft.models.attach import Attached, attach
from autopeft.models.base import Base, load_base
from autopeft.models.roles import attention_path

ENCODERS = ("bert", "roberta", "distilbert", "mpnet", "deberta")
DECODERS = ("llama", "gpt2", "qwen", "mistral", "gemma", "opt")
BYPASSING = ("mpnet", "deberta")
WITH_CACHE = ("bert", "roberta", "llama", "gpt2")
LENGTH = 5


def unpadded(text: dict[str, torch.Tensor], row: int) -> dict[str, torch.Tensor]:
    n_tokens = int(text["attention_mask"][row].sum())
    return {name: tensor[row : row + 1, :n_tokens] for name, tensor in text.items()}


@pytest.mark.parametrize("name", WITH_CACHE)
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_a_prefix_in_all_layers_is_pefts_prefix_tuning(
    folders: dict[str, str], text: dict[str, torch.Tensor], name: str, kernel: str
) -> None:
    base = load_base(folders[name], HEAD, kernel=kernel)  # type: ignore[arg-type]
    summary, model = base.summary, base.model
    with attach(base, design({"prefix": {"length": LENGTH}})) as attached:
        perturb(attached)
        ours = logits(model, text)
        state = attached.state()
    with attach(base, design({"prefix": {"length": LENGTH, "layers": [0]}})):
        pass  # a design in between leaves nothing behind
    model.load_state_dict({n: t for n, t in state.items() if "autopeft" not in n}, strict=False)
    config = peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=LENGTH)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")
        stock = peft.get_peft_model(model, config)
    table = stock.prompt_encoder["default"].embedding.weight.data
    table = table.view(LENGTH, summary.n_layers, 2, summary.n_key_value_heads, summary.head_size)
    for index, layer in enumerate(summary.layers):
        for which, part in enumerate(("keys", "values")):
            states = state[f"{attention_path(layer)}.autopeft_prefix.{part}"]
            table[:, index, which] = states.transpose(0, 1)
    theirs = logits(stock, text)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    table[0, 0, 0, 0] += 10
    assert not torch.allclose(logits(stock, text), theirs)


@pytest.mark.parametrize("name", ENCODERS + DECODERS)
@pytest.mark.parametrize("layers", [[0], [1, 2], "all"])
def test_the_count_is_the_formula_and_every_layer_matters(
    bases: dict[str, Base], text: dict[str, torch.Tensor], name: str, layers: list[int] | str
) -> None:
    base = bases[name]
    summary = base.summary
    with attach(base, design({"prefix": {"length": LENGTH, "layers": layers}})) as attached:
        group = attached.groups["prefix"]
        n_layers = summary.n_layers if layers == "all" else len(layers)
        n_each = 2 * LENGTH * summary.n_key_value_heads * summary.head_size
        assert sum(p.numel() for p in group) == n_layers * n_each
        perturb(attached)
        answer = logits(base.model, text)
        for parameter in group:  # keys and values of each layer
            with torch.no_grad():
                parameter.mul_(-2)
            changed = logits(base.model, text)
            assert (changed - answer).abs().max() > 1e-4
            answer = changed


@pytest.mark.parametrize("name", ENCODERS + DECODERS)
@pytest.mark.parametrize("layers", [[1], "all"])
def test_eager_and_sdpa_agree_and_padding_is_not_seen(
    bases: dict[str, Base], folders: dict[str, str], text: dict[str, torch.Tensor], name: str, layers: list[int] | str
) -> None:
    made = design({"prefix": {"length": LENGTH, "layers": layers}})
    answers = []
    for base in (bases[name], load_base(folders[name], HEADS[name], kernel="eager")):
        with attach(base, made) as attached:
            perturb(attached)
            answers.append(logits(base.model, text))
            for row in range(3):
                alone = logits(base.model, unpadded(text, row))[0]
                padded = answers[-1][row, : len(alone)]  # classes, or tokens of which padding is the last
                torch.testing.assert_close(alone, padded, atol=1e-4, rtol=1e-4)
    assert (bases[name].kernel, base.kernel) == ("eager" if name in BYPASSING else "sdpa", "eager")
    torch.testing.assert_close(answers[0], answers[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("layers", [[1], "all"])
def test_no_token_sees_a_later_one(
    bases: dict[str, Base], text: dict[str, torch.Tensor], name: str, padded: bool, layers: list[int] | str
) -> None:
    """Without padding transformers gives no mask and says "causal": the prefix must not shift that triangle."""
    base = bases[name]
    ids = text["input_ids"][:1]
    mask = torch.ones_like(ids)
    if padded:
        ids, mask = torch.nn.functional.pad(ids, (0, 2), value=1), torch.nn.functional.pad(mask, (0, 2))
    with attach(base, design({"prefix": {"length": LENGTH, "layers": layers}})) as attached, torch.no_grad():
        perturb(attached)
        backbone = base.model.base_model
        base.model.eval()
        hidden = backbone(input_ids=ids, attention_mask=mask).last_hidden_state
        changed = ids.clone()
        changed[0, 6] = 3
        later = backbone(input_ids=changed, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(later[0, :6], hidden[0, :6])
        assert (later[0, 6:9] - hidden[0, 6:9]).abs().amax(1).min() > 1e-4


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("layers", [[1], "all"])
def test_a_cached_forward_is_the_uncached_one(
    bases: dict[str, Base], text: dict[str, torch.Tensor], name: str, layers: list[int] | str
) -> None:
    base = bases[name]
    ids = text["input_ids"][:1]
    with attach(base, design({"prefix": {"length": LENGTH, "layers": layers}})) as attached, torch.no_grad():
        perturb(attached)
        backbone = base.model.base_model
        base.model.eval()
        whole = backbone(input_ids=ids).last_hidden_state
        first = backbone(input_ids=ids[:, :5], use_cache=True)
        second = backbone(input_ids=ids[:, 5:], past_key_values=first.past_key_values, use_cache=True)
        torch.testing.assert_close(second.last_hidden_state, whole[:, 5:], atol=1e-4, rtol=1e-4)


def test_grouped_queries_share_the_prefix_as_they_share_keys(bases: dict[str, Base]) -> None:
    summary = bases["llama"].summary
    assert (summary.n_heads, summary.n_key_value_heads) == (4, 2)
    with attach(bases["llama"], design({"prefix": {"length": LENGTH, "layers": [0]}})) as attached:
        assert {tuple(p.shape) for p in attached.groups["prefix"]} == {(2, LENGTH, 8)}


def test_an_input_of_the_longest_length_still_fits(bases: dict[str, Base]) -> None:
    for name in ("bert", "roberta", "gpt2"):
        n_positions = bases[name].summary.n_positions
        assert n_positions is not None
        longest = {"input_ids": torch.full((2, n_positions), 7), "attention_mask": torch.ones(2, n_positions)}
        with attach(bases[name], design({"prefix": {"length": LENGTH}})):
            assert logits(bases[name].model, longest).isfinite().all()


def test_what_cannot_be_is_refused(bases: dict[str, Base]) -> None:
    summary = dataclasses.replace(bases["bert"].summary, has_attention_interface=False)
    with pytest.raises(DesignError, match="attention interface, or one of mpnet, deberta-v2"):
        design({"prefix": {"length": 2}}).check(summary)
    with pytest.raises(DesignError, match="length < n_positions must hold, but got length=40, n_positions=40"):
        attach(bases["bert"], design({"prefix": {"length": 40}}))
    with pytest.raises(DesignError, match="one prefix, but layer 1 has two"):
        attach(
            bases["bert"], design({"prefix": {"length": 2, "layers": [0, 1]}}, {"prefix": {"length": 3, "layers": [1]}})
        )
    with pytest.raises(DesignError, match="length"):
        design({"prefix": {"length": 0}})


def test_only_a_prefix_in_all_layers_is_stock(bases: dict[str, Base]) -> None:
    everywhere, some = design({"prefix": {"length": 2}}), design({"prefix": {"length": 2, "layers": [1]}})
    assert everywhere.serving(bases["bert"].summary) == "peft"
    assert some.serving(bases["bert"].summary) == "autopeft"
    assert everywhere.serving(bases["distilbert"].summary) == "autopeft"  # takes no cache, so peft refuses it


def attention(
    prefixes: dict[torch.nn.Module, Callable[[], tuple[torch.Tensor, torch.Tensor, torch.Tensor | float]]],
) -> Callable[..., Any]:
    """Return attention as papers write it: the prefix's scores beside the text's, and its gate on keys and values."""

    def compute(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        softcap: float | None = None,
        position_bias: torch.Tensor | float = 0.0,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        n_shared = query.shape[1] // key.shape[1]  # queries that share a key
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling

        def scores(keys: torch.Tensor) -> torch.Tensor:
            raw = torch.einsum("bhqd,bhkd->bhqk", query, keys.repeat_interleave(n_shared, 1)) * scaling
            return raw if softcap is None else softcap * torch.tanh(raw / softcap)

        of_text = scores(key) + position_bias + (0.0 if attention_mask is None else attention_mask)
        read = value.repeat_interleave(n_shared, 1)
        if module not in prefixes:
            return (of_text.softmax(-1) @ read).transpose(1, 2), None
        keys, values, gate = prefixes[module]()  # the gate: [batch, 1, 1 or tokens, 1], or 1
        of_prefix = scores(keys.expand(len(query), -1, -1, -1)) * gate
        weights = torch.cat([of_prefix, of_text], -1).softmax(-1)
        n = keys.shape[1]
        prefix_read = weights[..., :n] @ values.repeat_interleave(n_shared, 0) * gate
        return (prefix_read + weights[..., n:] @ read).transpose(1, 2), None

    return compute


def by_formula(base: Base, attached: Attached, inputs: dict[str, torch.Tensor], monkeypatch: Any) -> torch.Tensor:
    """Answer with another copy of the model whose attention is the formula; nothing is attached to it."""
    model, tensors = base.model, attached.state()
    model.load_state_dict({n: t for n, t in tensors.items() if "autopeft" not in n}, strict=False)
    read: dict[torch.nn.Module, torch.Tensor] = {}
    prefixes: dict[torch.nn.Module, Any] = {}
    hooks = []
    for index, layer in enumerate(base.summary.layers):
        path, module = attention_path(layer), model.get_submodule(attention_path(layer))
        own = {n.removeprefix(f"{path}.autopeft_prefix."): t for n, t in tensors.items() if n.startswith(f"{path}.")}
        if not own:
            continue

        def note(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
            read[module] = args[0] if args else kwargs["hidden_states"]

        def prefix(own: Any = own, module: Any = module, index: int = index) -> Any:
            gate: torch.Tensor | float = 1.0
            if "gate.linear.weight" in own:
                each = torch.sigmoid(read[module] @ own["gate.linear.weight"].T + own["gate.linear.bias"])
                causal = base.summary.is_decoder or layer_stack(base, index) == "decoder"
                real = inputs["attention_mask"][..., None] if "attention_mask" in inputs else torch.ones_like(each)
                gate = (each if causal else (each * real).sum(1, keepdim=True) / real.sum(1, keepdim=True))[:, None]
            return own["keys"], own["values"], gate

        hooks.append(module.register_forward_pre_hook(note, with_kwargs=True))
        prefixes[module] = prefix
    file = sys.modules[type(next(iter(prefixes))).__module__]
    monkeypatch.setattr(file, "eager_attention_forward", attention(prefixes))
    answer = logits(model, inputs)
    for hook in hooks:
        hook.remove()
    return answer


def layer_stack(base: Base, index: int) -> str:
    return base.summary.layers[index].stack


@pytest.mark.parametrize("gate", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in BYPASSING])
def test_a_prefix_is_what_the_equations_say(
    bases: dict[str, Base], folders: dict[str, str], name: str, gate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Li & Liang, and Mao et al. (section 3.2); in an encoder-decoder in both stacks."""
    inputs = inputs_for(name)
    plain = load_base(folders[name], HEADS[name], kernel="eager")
    for base in (bases[name], load_base(folders[name], HEADS[name], kernel="eager")):
        with attach(base, design({"prefix": {"length": LENGTH, "gate": gate, "layers": [1, 2]}})) as attached:
            perturb(attached)
            ours = logits(base.model, inputs)
            with monkeypatch.context() as patch:
                theirs = by_formula(plain, attached, inputs, patch)
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("gate", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("name", ["gemma2", "sliding mistral"])
def test_a_sliding_window_and_capped_scores_are_the_texts_and_the_prefix_stays_in_sight(
    tmp_path: Path, text: dict[str, torch.Tensor], name: str, gate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"gemma2": transformers.Gemma2Config, "sliding mistral": transformers.MistralConfig}[name]
    monkeypatch.setitem(CONFIGS, name, lambda: config(**LLAMA_LIKE, head_dim=8, sliding_window=3))
    folder = save(name, tmp_path, "AutoModelForCausalLM")
    base, plain = (load_base(folder, LANGUAGE_HEAD, kernel="eager") for _ in range(2))
    with attach(base, design({"prefix": {"length": LENGTH, "gate": gate, "layers": [0, 1]}})) as attached:
        perturb(attached)
        ours = logits(base.model, text)
        with monkeypatch.context() as patch:
            theirs = by_formula(plain, attached, text, patch)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert design({"prefix": {"length": LENGTH}}).serving(base.summary) == "autopeft"  # from peft's window it slides


@pytest.mark.parametrize("gate", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("name", BYPASSING)
def test_attention_of_its_own_gets_a_prefix_at_no_distance(
    bases: dict[str, Base], name: str, gate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scores of the text are read from the architecture's own forward; the prefix's are of contents alone."""
    base = bases[name]
    hidden = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(0))
    relative = torch.randn(64, 32, generator=torch.Generator().manual_seed(1))
    opened = torch.ones(2, 1, 7, 7)
    opened[1, ..., 5:] = 0
    bias = torch.randn(1, 4, 7, 7, generator=torch.Generator().manual_seed(2))
    arguments: dict[str, Any] = {
        "mpnet": {"attention_mask": (1 - opened) * torch.finfo().min, "position_bias": bias},
        "deberta": {"attention_mask": opened, "rel_embeddings": relative},
    }[name]
    base.model.eval()
    with attach(base, design({"prefix": {"length": LENGTH, "layers": [1], "gate": gate}})) as attached, torch.no_grad():
        perturb(attached)
        module: Any = base.model.get_submodule(attention_path(base.summary.layers[1]))
        ours = module(hidden, **arguments)[0]
        prefix = module.autopeft_prefix
        factor = torch.sigmoid(prefix.gate.linear(hidden)).mean(1)[:, None, None] if gate else 1.0
        keys, values = prefix.keys * factor, prefix.values * factor
        seen: list[torch.Tensor] = []
        softmax = torch.nn.functional.softmax

        def note(scores: torch.Tensor, dim: int) -> torch.Tensor:
            seen.append(scores)
            return softmax(scores, dim)

        monkeypatch.setattr(torch.nn.functional, "softmax", note)
        type(module).forward(module, hidden, **arguments)
        (of_text,) = seen
        query, value = (
            getattr(module, names[name])(hidden).view(2, 7, 4, 8).transpose(1, 2)
            for names in ({"mpnet": "q", "deberta": "query_proj"}, {"mpnet": "v", "deberta": "value_proj"})
        )
        n_terms = {"mpnet": 1, "deberta": 3}[name]
        of_prefix = query @ keys.transpose(-1, -2) / (8 * n_terms) ** 0.5
        weights = softmax(torch.cat([of_prefix, of_text], -1), -1)
        expected = (weights[..., :LENGTH] @ values + weights[..., LENGTH:] @ value).transpose(1, 2).flatten(2)
        torch.testing.assert_close(ours, module.o(expected) if name == "mpnet" else expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
@pytest.mark.parametrize("gate", [False, True], ids=["plain", "gated"])
def test_a_projection_is_one_mlp_over_smaller_embeddings_and_is_folded_away(
    bases: dict[str, Base], name: str, gate: bool, tmp_path: Path
) -> None:
    """Li & Liang, eq. 3, as in their code: the second map makes keys and values of all layers at once."""
    base, inputs = bases[name], inputs_for(name)
    block = {"length": LENGTH, "projection": True, "projection_size": 6, "gate": gate, "layers": [0, 2]}
    with attach(base, design({"prefix": block})) as attached:
        perturb(attached)
        answer, tensors, exported = logits(base.model, inputs), attached.state(), attached.exported_tensors()
        write(attached, tmp_path)
    found = {n.partition("autopeft_prefix")[2]: t for n, t in tensors.items() if "autopeft_prefix_mlp" in n}
    hidden = torch.tanh(found["_mlp.embeddings"] @ found["_mlp.map.weight"].T + found["_mlp.map.bias"])
    second = [n for n in tensors if n.endswith("autopeft_prefix.map.weight")]
    all_states = hidden @ torch.cat([tensors[n] for n in second]).T
    for index, path in enumerate(name.removesuffix(".map.weight") for name in second):
        states = all_states.chunk(2, 1)[index] + tensors[f"{path}.map.bias"]
        for part, expected in zip(("keys", "values"), states.chunk(2, 1), strict=True):
            torch.testing.assert_close(exported[f"{path}.{part}"].transpose(0, 1).flatten(1), expected)
    assert not [n for n in exported if ".map." in n or "_mlp" in n]
    torch.testing.assert_close(logits(load(tmp_path)[0], inputs), answer, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("gate", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("name", ["llama", "t5", "whisper"])
def test_generation_with_a_cache_is_generation_without(
    bases: dict[str, Base], language_bases: dict[str, Base], name: str, gate: bool
) -> None:
    base = language_bases.get(name, bases[name])
    inputs = {key: value for key, value in inputs_for(name).items() if key != "decoder_input_ids"}
    inputs = {key: value.flip(1) if key != "input_features" else value for key, value in inputs.items()}
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 1}
    with attach(base, design({"prefix": {"length": LENGTH, "gate": gate, "layers": [1, 2]}})) as attached:
        perturb(attached)
        base.model.eval()
        cached = base.model.generate(**inputs, use_cache=True, **options)
        assert torch.equal(cached, base.model.generate(**inputs, use_cache=False, **options))


def test_words_and_the_one_form_of_equal_designs(bases: dict[str, Base]) -> None:
    summary = bases["bert"].summary
    made = design({"prefix": {"length": 4, "projection": True, "gate": True}})
    assert made.describe() == "prefix of 4 from an MLP of 512, gated"
    unused = design({"prefix": {"length": 4, "projection_size": 7}})
    assert unused.resolve(summary) == design({"prefix": {"length": 4}}).resolve(summary)
    assert made.serving(summary) == "autopeft"
    assert design({"prefix": {"length": 4, "projection": True}}).serving(summary) == "peft"


def write(attached: Attached, folder: Path) -> None:
    for name, content in pack(attached, metadata={}).items():
        (folder / name).write_bytes(content)
