import warnings

import peft
import pytest
import torch
from tiny_models import HEAD, design, logits, perturb

from autopeft.errors import DesignError
from autopeft.models.attach import attach
from autopeft.models.base import Base, load_base
from autopeft.models.roles import attention_path

ENCODERS = ("bert", "roberta", "distilbert")
DECODERS = ("llama", "gpt2")
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
    for base in (bases[name], load_base(folders[name], HEAD, kernel="eager")):
        with attach(base, made) as attached:
            perturb(attached)
            answers.append(logits(base.model, text))
            for row in range(3):
                torch.testing.assert_close(
                    logits(base.model, unpadded(text, row))[0], answers[-1][row], atol=1e-5, rtol=1e-4
                )
    assert (bases[name].kernel, base.kernel) == ("sdpa", "eager")
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
    for name in ("mpnet", "deberta"):
        with pytest.raises(DesignError, match="attention interface"):
            attach(bases[name], design({"prefix": {"length": 2}}))
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
