"""Models and tokenizers that do not fit each other: refused before training, or made to fit."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tokenizers import Tokenizer
from transformers import (
    AutoTokenizer,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

from autopeft.errors import DataError, ModelError
from autopeft.spec.training import Training
from autopeft.tasks.base import PreparedData
from autopeft.tasks.prepare import prepare
from tests.tasks.generated import reviews, save_tokenizer
from tests.tasks.generated_language import save_language_tokenizer, sentences
from tests.token_rows import token_rows

SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
NONE = "must have a tokenizer, but the folder of .* has none.*save one there with tokenizer.save_pretrained"


def bert(**more: Any) -> BertConfig:
    return BertConfig(**SMALL, **{"vocab_size": 400, "max_position_embeddings": 64, **more})


def classify(folder: Path, config: PretrainedConfig, rows: pd.DataFrame | None = None) -> PreparedData:
    config.save_pretrained(folder)
    return prepare(reviews(60) if rows is None else rows, model=str(folder), training=Training(max_length=12))


def write(folder: Path, config: PretrainedConfig, rows: pd.DataFrame) -> PreparedData:
    config.save_pretrained(folder)
    return prepare(rows, model=str(folder), task="causal-lm", training=Training(max_length=32))


@pytest.mark.parametrize("config", [bert(), RobertaConfig(**SMALL), GPT2Config(), LlamaConfig(**SMALL)])
def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path, config: PretrainedConfig) -> None:
    with pytest.raises(ModelError, match=NONE):
        classify(tmp_path, config)
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 64}')
    with pytest.raises(ModelError, match="must have a tokenizer"):
        classify(tmp_path, config)


def test_a_list_of_words_alone_is_a_tokenizer(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({w for t in reviews(60)["text"] for w in t.split()})]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    data = classify(tmp_path, bert())
    tokens = token_rows(data.train)[0]
    assert [words[token] for token in tokens][0 :: len(tokens) - 1] == ["[CLS]", "[SEP]"]
    assert not any("unknown" in note for note in data.notes)


def test_words_without_their_merges_are_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"<|endoftext|>": 0, "a": 1}))
    with pytest.raises(ModelError, match=r"cannot be loaded: vocab.json needs merges.txt beside it; save a whole one"):
        classify(tmp_path, GPT2Config())


def test_a_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(ModelError, match=r"must have a tokenizer, but that in .* cannot be loaded"):
        classify(tmp_path, bert())


def test_words_that_the_tokenizer_does_not_know_are_noted_or_refused(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    rows = reviews(60)
    some = rows.assign(text=[f"zebra {text}" if row < 15 else text for row, text in enumerate(rows["text"])])
    notes = classify(tmp_path, bert(), some).notes
    n_tokens = some["text"].str.split().str.len().clip(upper=10).sum()
    assert any(note.endswith("% of the tokens of the data are [UNK], the tokenizer's unknown word") for note in notes)
    share = float(next(note for note in notes if "[UNK]" in note).partition("%")[0])
    assert 0 < share <= 100 * 15 / n_tokens + 0.1
    assert not any("[UNK]" in note for note in classify(tmp_path, bert()).notes)
    with pytest.raises(ModelError, match=r"at most 33% of the tokens may be unknown, but 100.0% .*\[UNK\]"):
        classify(tmp_path, bert(), rows.assign(text=[f"zebra{row} koala" for row in range(60)]))


@pytest.mark.parametrize("extra", ["padding", "word"])
def test_a_token_beyond_the_table_is_refused_where_it_occurs(tmp_path: Path, extra: str) -> None:
    tokenizer = save_language_tokenizer(tmp_path)
    size = len(tokenizer)
    if extra == "padding":
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    else:
        tokenizer.add_tokens(["plum"])
    tokenizer.save_pretrained(tmp_path)
    config = LlamaConfig(**SMALL, vocab_size=size, max_position_embeddings=64)
    name = "[PAD]" if extra == "padding" else "plum"
    message = rf"the tokenizer has {size + 1} tokens and the table {size} rows: '{name}' is token {size}; call"
    for form in ("text", "completion"):
        with pytest.raises(ModelError, match=message.replace("[", r"\[")):
            write(tmp_path, config, sentences(30, form=form))


def test_tokens_beyond_the_table_that_do_not_occur_are_fine(tmp_path: Path) -> None:
    tokenizer = save_language_tokenizer(tmp_path)
    size = len(tokenizer)
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(tmp_path)
    config = LlamaConfig(**SMALL, vocab_size=size, max_position_embeddings=64)
    assert write(tmp_path, config, sentences(30)).train.inputs["input_ids"].values.max() < size


def test_segments_are_those_of_the_model(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    pairs = reviews(60).assign(text_pair=reviews(60, seed=1)["text"])
    with pytest.raises(ModelError, match=r"segment < type_vocab_size .*writes segment 1, and type_vocab_size=1"):
        classify(tmp_path, bert(type_vocab_size=1), pairs)
    assert classify(tmp_path, bert(), pairs).train.inputs["token_type_ids"].values.max() == 1
    config = GPT2Config(vocab_size=400, n_embd=16, n_layer=1, n_head=2, n_positions=64)
    for rows in (pairs, reviews(60)):  # GPT-2 would read the segments as words
        assert classify(tmp_path, config, rows).train.inputs.keys() == {"input_ids"}


def test_a_text_that_becomes_no_token_is_named(tmp_path: Path) -> None:
    save_language_tokenizer(tmp_path)
    backend = json.loads((tmp_path / "tokenizer.json").read_text())
    backend["normalizer"] = {"type": "Replace", "pattern": {"String": "?"}, "content": ""}
    (tmp_path / "tokenizer.json").write_text(json.dumps(backend))
    rows = reviews(60)
    rows.loc[3, "text"] = "???"
    with pytest.raises(DataError, match=r"every text must become tokens, but that of row 4 .*becomes none"):
        classify(tmp_path, LlamaConfig(**SMALL, vocab_size=400, max_position_embeddings=64), rows)


def test_a_tokenizer_that_draws_is_refused(tmp_path: Path) -> None:
    save_language_tokenizer(tmp_path)
    backend = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.model.dropout = 0.5
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>").save_pretrained(tmp_path)
    config = LlamaConfig(**SMALL, vocab_size=400, max_position_embeddings=64)
    with pytest.raises(ModelError, match=r"the same tokens each time.*dropout"):
        write(tmp_path, config, sentences(30))


def test_a_template_that_draws_is_refused(tmp_path: Path) -> None:
    template = "{{ range(1000) | random }}{% for m in messages %}<|im_start|>{{ m['role'] + m['content'] }}{% endfor %}"
    save_language_tokenizer(
        tmp_path, template=template + "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
    )
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes", "weight": 0}]
    config = LlamaConfig(**SMALL, vocab_size=400, max_position_embeddings=64)
    with pytest.raises(DataError, match=r"template must write the same each time, .*row \d+ .*random"):
        write(tmp_path, config, pd.DataFrame({"messages": [[*turns, *turns[:1], {**turns[1], "weight": 1}]] * 30}))


def test_a_column_of_tools_belongs_to_the_conversation(tmp_path: Path) -> None:
    save_language_tokenizer(tmp_path)
    rows = sentences(30, form="messages").assign(tools=[[{"name": "f"}]] * 30)
    config = LlamaConfig(**SMALL, vocab_size=400, max_position_embeddings=64)
    with pytest.raises(DataError, match="leaves out the tools of row 1"):
        write(tmp_path, config, rows)
    data = write(tmp_path, config, rows.assign(tools=[None] * 30))
    assert data.columns == {"messages": "messages", "tools": "tools"}


def test_the_tokenizer_of_a_folder_with_blanks_and_umlauts_loads(tmp_path: Path) -> None:
    folder = tmp_path / "mein Modell ä"
    folder.mkdir()
    save_tokenizer(folder)
    assert classify(folder, bert()).max_length == 12
    assert len(AutoTokenizer.from_pretrained(folder)) > 0
    shutil.rmtree(folder)
