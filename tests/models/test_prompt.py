import dataclasses
import warnings
from pathlib import Path

import peft
import pytest
import torch
import transformers
from tiny_models import HEAD, HEADS, LANGUAGE_HEAD, design, logits, perturb

from autopeft.errors import DesignError, ModelError
from autopeft.models.artifact import load, pack
from autopeft.models.attach import attach
from autopeft.models.base import Base

ENCODERS = ("bert", "roberta", "mpnet", "deberta", "distilbert")
DECODERS = ("llama", "gpt2")
TEXT = tuple(name for name, head in HEADS.items() if head in (HEAD, LANGUAGE_HEAD))
LENGTH = 5
MADE = design({"prompt": {"length": LENGTH}})


def unpadded(text: dict[str, torch.Tensor], row: int) -> dict[str, torch.Tensor]:
    real = text["attention_mask"][row].bool()
    return {name: tensor[row : row + 1, real] for name, tensor in text.items()}


def left_padded(text: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.flip(1) for name, tensor in text.items()}


@pytest.mark.parametrize("name", TEXT)
def test_it_starts_as_rows_of_the_models_own_table(bases: dict[str, Base], name: str) -> None:
    base = bases[name]
    table = base.model.get_input_embeddings()(torch.arange(97))  # Gemma scales what it reads

    def prompt(seed: int) -> torch.Tensor:
        with attach(base, MADE, seed=seed) as attached:
            (embeddings,) = attached.groups["prompt"]
            assert embeddings.shape == (LENGTH, 32)
            return embeddings.detach().clone()

    first = prompt(1)
    assert all((row == table).all(1).any() for row in first)
    assert torch.equal(first, prompt(1))
    assert not torch.equal(first, prompt(2))


@pytest.mark.parametrize("name", TEXT)
def test_its_tokens_are_read_before_the_text(bases: dict[str, Base], text: dict[str, torch.Tensor], name: str) -> None:
    """At the start the prompt is tokens: the model must answer as if it read those tokens and then the text."""
    base = bases[name]
    table = base.model.get_input_embeddings()(torch.arange(97))
    with attach(base, MADE) as attached:
        answer = logits(base.model, text)
        tokens = [int((row == table).all(1).nonzero()[0]) for row in attached.groups["prompt"][0]]
    assert len(tokens) == LENGTH
    ids = torch.cat([torch.tensor([tokens] * 3), text["input_ids"]], dim=1)
    mask = torch.nn.functional.pad(text["attention_mask"], (LENGTH, 0), value=1)
    with attach(base, design()):
        spelled = {"input_ids": ids, "attention_mask": mask}
        if 1 in tokens:  # the padding token itself: told by the mask alone in one case, by its number in the other
            pytest.skip("the prompt has a padding token")
        expected = logits(base.model, spelled)
        expected = expected[:, LENGTH:] if expected.dim() == 3 else expected  # of tokens, or of classes
        torch.testing.assert_close(answer, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", TEXT)
def test_padding_is_not_seen(bases: dict[str, Base], text: dict[str, torch.Tensor], name: str) -> None:
    with attach(bases[name], MADE) as attached:
        perturb(attached)
        answer = logits(attached.model, text)
        for row in range(3):
            alone = logits(attached.model, unpadded(text, row))[0]
            torch.testing.assert_close(alone, answer[row, : len(alone)], atol=1e-5, rtol=1e-4)


def test_token_types_of_the_text_stay_where_they_are(bases: dict[str, Base], text: dict[str, torch.Tensor]) -> None:
    with attach(bases["bert"], MADE) as attached:
        perturb(attached)
        plain = logits(attached.model, text)
        types = torch.zeros_like(text["input_ids"])
        torch.testing.assert_close(logits(attached.model, {**text, "token_type_ids": types}), plain)
        types[:, 2:] = 1
        assert not torch.allclose(logits(attached.model, {**text, "token_type_ids": types}), plain)


@pytest.mark.parametrize("encoder", ["none", "mlp", "lstm"])
@pytest.mark.parametrize("name", ENCODERS)
def test_a_classifiers_prompt_is_pefts_prompt_tuning(
    bases: dict[str, Base],
    folders: dict[str, str],
    text: dict[str, torch.Tensor],
    name: str,
    encoder: str,
    tmp_path: Path,
) -> None:
    with attach(bases[name], design({"prompt": {"length": LENGTH, "encoder": encoder}})) as attached:
        perturb(attached)
        ours = logits(attached.model, text)
        write(attached, tmp_path)
    assert (tmp_path / "adapter_config.json").is_file()
    base = transformers.AutoModelForSequenceClassification.from_pretrained(folders[name], num_labels=2)
    torch.testing.assert_close(logits(open_in_peft(base, tmp_path), text), ours, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(load(tmp_path)[0], text), ours, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", DECODERS)
def test_a_language_models_prompt_is_pefts_but_for_the_length_of_the_logits(
    language_bases: dict[str, Base],
    language_folders: dict[str, str],
    text: dict[str, torch.Tensor],
    name: str,
    tmp_path: Path,
) -> None:
    with attach(language_bases[name], MADE) as attached:
        perturb(attached)
        ours = logits(attached.model, text)
        write(attached, tmp_path)
    assert ours.shape == (*text["input_ids"].shape, 97)
    base = transformers.AutoModelForCausalLM.from_pretrained(language_folders[name])
    theirs = logits(open_in_peft(base, tmp_path), text)
    torch.testing.assert_close(theirs[:, LENGTH:], ours, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(load(tmp_path)[0], text), ours, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoders_classifier_reads_the_last_token_and_exports_in_our_format(
    bases: dict[str, Base], text: dict[str, torch.Tensor], name: str, tmp_path: Path
) -> None:
    """Stock peft gives the classifier no tokens to find the last one by: it reads the padding."""
    with attach(bases[name], MADE) as attached:
        perturb(attached)
        ours = logits(attached.model, text)
        write(attached, tmp_path)
    assert (tmp_path / "adapter.safetensors").is_file()
    torch.testing.assert_close(logits(load(tmp_path)[0], text), ours, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize(
    "blocks",
    [
        [{"prompt": {"length": LENGTH}}],
        [{"prompt": {"length": LENGTH}}, {"prefix": {"length": 3}}],
        [{"prompt": {"length": LENGTH}}, {"prefix": {"length": 3, "layers": [1]}}, {"lora": {"rank": 2}}],
    ],
    ids=["prompt", "prefix", "hybrid"],
)
def test_generation_with_a_cache_and_left_padding_is_generation_without(
    language_bases: dict[str, Base], text: dict[str, torch.Tensor], name: str, blocks: list[dict[str, object]]
) -> None:
    padded = left_padded(text)
    with attach(language_bases[name], design(*blocks)) as attached:
        perturb(attached)
        options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 1}
        cached = attached.model.generate(**padded, use_cache=True, **options)
        assert torch.equal(cached, attached.model.generate(**padded, use_cache=False, **options))
        assert len(set(cached[:, 9:].flatten().tolist())) > 2, "the same token again and again would prove little"
        for row in range(3):
            alone = attached.model.generate(**unpadded(padded, row), use_cache=False, **options)
            assert torch.equal(alone[0, -8:], cached[row, -8:])


@pytest.mark.parametrize("name", DECODERS)
def test_a_cached_forward_is_the_uncached_one(
    language_bases: dict[str, Base], text: dict[str, torch.Tensor], name: str
) -> None:
    ids = text["input_ids"][:1]
    with attach(language_bases[name], MADE) as attached, torch.no_grad():
        perturb(attached)
        model = attached.model.eval()
        whole = model(input_ids=ids).logits
        first = model(input_ids=ids[:, :5], use_cache=True)
        second = model(input_ids=ids[:, 5:], past_key_values=first.past_key_values, use_cache=True)
        torch.testing.assert_close(torch.cat([first.logits, second.logits], 1), whole, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(first.logits, second.logits[:, -1:])


@pytest.mark.parametrize("name", DECODERS)
def test_tuples_and_the_loss_are_of_the_text_alone(
    language_bases: dict[str, Base], text: dict[str, torch.Tensor], name: str
) -> None:
    with attach(language_bases[name], MADE) as attached, torch.no_grad():
        perturb(attached)
        model = attached.model.eval()
        answer = model(**text, labels=text["input_ids"])
        expected = torch.nn.functional.cross_entropy(
            answer.logits[:, :-1].flatten(0, 1), text["input_ids"][:, 1:].flatten()
        )
        torch.testing.assert_close(answer.loss, expected)
        hidden = model.base_model(**text).last_hidden_state
        torch.testing.assert_close(model.base_model(**text, return_dict=False)[0], hidden)
        embedded = model.get_input_embeddings()(text["input_ids"])
        mask = text["attention_mask"]
        torch.testing.assert_close(model(inputs_embeds=embedded, attention_mask=mask).logits, answer.logits)


def test_what_cannot_be_is_refused(bases: dict[str, Base]) -> None:
    base = bases["bert"]
    with pytest.raises(DesignError, match="length < n_positions must hold, but got length=40, n_positions=40"):
        attach(base, design({"prompt": {"length": 40}}))
    with pytest.raises(DesignError, match="one prompt, but this one has 2"):
        attach(base, design({"prompt": {"length": 2}}, {"prompt": {"length": 3}}))
    with pytest.raises(DesignError, match=r"prompt.layers.*as a whole and has no layers"):
        design({"prompt": {"length": 2, "layers": [0, 1]}})
    with pytest.raises(DesignError, match="length"):
        design({"prompt": {"length": 0}})
    summary = dataclasses.replace(base.summary, takes_embeddings=False)
    with pytest.raises(DesignError, match="takes its input as embeddings"):
        MADE.check(summary)


def test_an_input_that_leaves_no_positions_is_a_clear_error(bases: dict[str, Base]) -> None:
    for name in ("bert", "roberta", "gpt2", "distilbert"):
        n_positions = bases[name].summary.n_positions
        assert n_positions is not None
        with attach(bases[name], MADE):
            fits = torch.full((2, n_positions - LENGTH), 7)
            assert (
                logits(bases[name].model, {"input_ids": fits, "attention_mask": torch.ones_like(fits)}).isfinite().all()
            )
            longer = torch.full((2, n_positions - LENGTH + 1), 7)
            with pytest.raises(ModelError, match=f"{n_positions} positions.*truncate"):
                logits(bases[name].model, {"input_ids": longer, "attention_mask": torch.ones_like(longer)})


def test_words_and_serving(bases: dict[str, Base], language_bases: dict[str, Base]) -> None:
    assert MADE.describe() == "prompt of 5"
    assert MADE.resolve(bases["bert"].summary) == MADE
    assert MADE.serving(bases["bert"].summary) == "peft"
    assert MADE.serving(bases["llama"].summary) == "autopeft"
    assert MADE.serving(language_bases["llama"].summary) == "peft"


def lstm(read: torch.Tensor, weights: dict[str, torch.Tensor], end: str) -> torch.Tensor:
    """Read [tokens, width] with one direction of one layer of an LSTM, written out."""
    size = weights[f"weight_hh_{end}"].shape[1]
    hidden, cell, said = torch.zeros(size), torch.zeros(size), []
    for token in read.flip(0) if end.endswith("reverse") else read:
        gates = weights[f"weight_ih_{end}"] @ token + weights[f"bias_ih_{end}"]
        gates = gates + weights[f"weight_hh_{end}"] @ hidden + weights[f"bias_hh_{end}"]
        let_in, kept, new, out = gates.chunk(4)
        cell = kept.sigmoid() * cell + let_in.sigmoid() * new.tanh()
        hidden = out.sigmoid() * cell.tanh()
        said.append(hidden)
    return torch.stack(said[::-1] if end.endswith("reverse") else said)


@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
def test_an_encoder_computes_the_prompt_and_is_folded_away(bases: dict[str, Base], encoder: str) -> None:
    """Liu et al.: an LSTM over the prompt in both directions, then an MLP; or an MLP alone, as stock peft has it."""
    made = design({"prompt": {"length": LENGTH, "encoder": encoder, "encoder_hidden_size": 6}})
    with attach(bases["bert"], made) as attached:
        perturb(attached)
        tensors, exported = attached.state(), attached.exported_tensors()
    own = {n.removeprefix("bert.autopeft_prompt."): t for n, t in tensors.items() if "autopeft_prompt" in n}
    hidden = own["embeddings"]
    if encoder == "lstm":
        weights = {n.removeprefix("lstm."): t for n, t in own.items()}
        for layer in ("l0", "l1"):
            hidden = torch.cat([lstm(hidden, weights, layer), lstm(hidden, weights, f"{layer}_reverse")], 1)
    maps = sorted(n.removesuffix(".weight") for n in own if n.startswith("mlp.") and n.endswith("weight"))
    assert len(maps) == {"mlp": 3, "lstm": 2}[encoder]
    for index, name in enumerate(maps):
        hidden = (hidden if index == 0 else hidden.relu()) @ own[f"{name}.weight"].T + own[f"{name}.bias"]
    torch.testing.assert_close(exported["bert.autopeft_prompt.embeddings"], hidden)
    assert [n for n in exported if "autopeft" in n] == ["bert.autopeft_prompt.embeddings"]


def test_the_one_form_of_equal_prompts(bases: dict[str, Base]) -> None:
    summary = bases["bert"].summary
    for block in ({"encoder_hidden_size": 7}, {}):
        assert design({"prompt": {"length": 5, **block}}).resolve(summary) == MADE
    usual = design({"prompt": {"length": 5, "encoder": "mlp"}})
    assert design({"prompt": {"length": 5, "encoder": "mlp", "encoder_hidden_size": 32}}).resolve(summary) == usual
    assert usual.describe() == "prompt of 5 from an MLP"


def write(attached, folder: Path) -> None:
    for name, content in pack(attached, metadata={}).items():
        (folder / name).write_bytes(content)


def open_in_peft(base: transformers.PreTrainedModel, folder: Path) -> torch.nn.Module:
    base.config.pad_token_id = 1
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")
        return peft.PeftModel.from_pretrained(base, folder)


@pytest.mark.parametrize("name", DECODERS)
def test_a_prompt_stands_right_before_the_text(language_bases: dict[str, Base], name: str) -> None:
    """Padding between them would push it out of a window, and move the text away from it."""
    ids, pads = torch.arange(5, 11)[None], torch.ones(1, 4, dtype=torch.long)
    with attach(language_bases[name], MADE) as attached, torch.no_grad():
        perturb(attached)
        model = attached.model.eval()
        seen: list[torch.Tensor] = []
        handle = model.base_model.register_forward_pre_hook(
            lambda _module, _args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
        )
        alone = model(input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=torch.arange(6)[None]).logits
        padded = model(
            input_ids=torch.cat([pads, ids], 1),
            attention_mask=torch.cat([0 * pads, torch.ones_like(ids)], 1),
            position_ids=torch.cat([pads, torch.arange(6)[None]], 1),
        ).logits
        handle.remove()
    assert padded.shape[1] == 10  # the text's, and the padding's
    torch.testing.assert_close(padded[:, 4:], alone, atol=1e-4, rtol=1e-4)
    assert torch.equal(seen[1][:, 4:], seen[0])
