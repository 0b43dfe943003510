"""What a language model is given, and which tokens of it are learned: against the tokenizer's own answers."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from transformers import AutoTokenizer

from autopeft.errors import DataError
from autopeft.models.losses import IGNORED
from autopeft.spec.training import Splits, Training
from autopeft.tasks.base import PreparedData
from autopeft.tasks.causal_lm import TASK
from autopeft.tasks.examples import Examples
from autopeft.tasks.prepare import prepare
from autopeft.tasks.sequences import TargetSequence, pieces, shorten
from tests.tasks.generated_language import (
    FORMS,
    TEMPLATE,
    conversation,
    save_language_tokenizer,
    save_tiny_llama,
    sentences,
    write_csv,
)
from tests.token_rows import token_rows


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of a tiny Llama with its tokenizer."""
    return save_tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def tokenizer(llama: str) -> Any:
    """Return its tokenizer."""
    return AutoTokenizer.from_pretrained(llama)


def examples(split: Examples) -> list[tuple[list[int], list[int]]]:
    """Return the tokens of each example, and those of them that are targets."""
    cut = zip(token_rows(split), token_rows(split, "labels"), strict=True)
    return [(ids.tolist(), labels[labels != IGNORED].tolist()) for ids, labels in cut]


def everything(rows: pd.DataFrame, model: str, **settings: Any) -> PreparedData:
    """Prepare rows as every split, in their order."""
    return prepare(dict.fromkeys(("train", "validation", "test"), rows), model=model, task="causal-lm", **settings)


def test_of_a_plain_text_every_token_is_learned_but_the_first(llama: str, tokenizer: Any) -> None:
    rows = sentences(20, form="text")
    expected = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(rows["text"].tolist())["input_ids"]]
    assert examples(everything(rows, llama).train) == [(ids, ids[1:]) for ids in expected]


def test_of_a_prompt_and_its_completion_the_completion_and_its_end_are_learned(llama: str, tokenizer: Any) -> None:
    rows = sentences(20)
    split = everything(rows, llama).train
    for (ids, targets), (prompt, completion, _) in zip(examples(split), rows.to_numpy(), strict=True):
        assert targets == [*tokenizer(completion)["input_ids"], tokenizer.eos_token_id]
        assert ids == [*tokenizer(prompt)["input_ids"], *targets]
    assert token_rows(split)[0].dtype == token_rows(split, "labels")[0].dtype == np.int32
    assert split.targets.tolist() == [len(targets) for _, targets in examples(split)]


def test_of_a_conversation_every_turn_of_the_assistant_is_learned(llama: str, tokenizer: Any) -> None:
    rows = sentences(20, form="messages")
    for (ids, targets), turns in zip(examples(everything(rows, llama).train), rows["messages"], strict=True):
        whole = tokenizer.apply_chat_template(turns, tokenize=False)
        assert tokenizer.decode(ids) == whole
        assert tokenizer.decode(targets) == "".join(f"{t['content']}<|im_end|>\n" for t in (turns[2], turns[4]))


@pytest.mark.parametrize("form", FORMS)
def test_every_file_format_makes_the_same_examples(llama: str, tmp_path: Path, form: str) -> None:
    rows = sentences(30, form=form)
    rows.to_parquet(tmp_path / "rows.parquet")
    rows.to_json(tmp_path / "rows.jsonl", orient="records", lines=True)
    paths = [write_csv(rows, tmp_path / "rows.csv"), tmp_path / "rows.parquet", tmp_path / "rows.jsonl"]
    made = [prepare(path, model=llama, task="causal-lm", columns={"group": "source"}) for path in paths]
    assert len({data.fingerprint for data in made}) == 1
    assert any("no source in two splits" in note for note in made[0].notes)


def test_splits_without_labels_are_random_disjoint_and_repeatable(llama: str) -> None:
    rows = sentences(100)
    first, same, other = (
        prepare(rows, model=llama, task="causal-lm", splits=Splits(train=60, validation=20, test=20, seed=seed))
        for seed in (0, 0, 1)
    )
    assert (len(first.train), len(first.validation), len(first.test)) == (60, 20, 20)
    assert first.fingerprint == same.fingerprint != other.fingerprint
    prompts = [tuple(ids) for split in (first.train, first.validation, first.test) for ids, _ in examples(split)]
    assert len(set(prompts)) == 100
    assert any("at random, seed 0: train 60, validation 20, test 20" in note for note in first.notes)


def test_the_fingerprint_covers_which_tokens_are_learned(llama: str) -> None:
    rows = pd.DataFrame({"prompt": ["a b"] * 5, "completion": [" c d"] * 5})
    moved = pd.DataFrame({"prompt": ["a b c"] * 5, "completion": [" d"] * 5})
    first, second = everything(rows, llama), everything(moved, llama)
    assert [ids for ids, _ in examples(first.train)] == [ids for ids, _ in examples(second.train)]
    assert first.fingerprint != second.fingerprint


@pytest.mark.parametrize("max_length", [2, 3, 7, 8])
def test_a_long_plain_text_is_cut_and_nothing_is_lost(llama: str, max_length: int) -> None:
    rows = sentences(20, form="text")
    whole = examples(everything(rows, llama).train)
    data = everything(rows, llama, training=Training(max_length=max_length))
    cut = examples(data.train)
    assert max(len(ids) for ids, _ in cut) <= max_length
    assert [token for _, targets in cut for token in targets] == [token for _, targets in whole for token in targets]
    assert all(ids[1:] == targets for ids, targets in cut)
    assert any("60 texts were longer than" in note and "nothing is lost" in note for note in data.notes)


def sequence(n_before: int, n_targets: int, n_after: int = 0) -> TargetSequence:
    """Return counted tokens of which a stretch are targets."""
    positions = np.arange(n_before + n_targets + n_after)
    return TargetSequence.of(positions.tolist(), (positions >= n_before) & (positions < n_before + n_targets))


@pytest.mark.parametrize(
    ("made", "kept", "n_targets"),
    [
        (sequence(6, 4), range(10), 4),  # fits
        (sequence(10, 4), range(4, 14), 4),  # the prompt loses its start
        (sequence(10, 9), range(9, 19), 9),  # one token of the prompt is left
        (sequence(10, 20), range(5, 15), 5),  # half of the room for the prompt, the answer loses its end
        (sequence(3, 20), range(10), 7),  # a short prompt stays whole
        (sequence(10, 4, 5), range(4, 14), 4),  # what follows the last answer goes first
    ],
)
def test_what_is_to_be_said_is_kept_where_it_fits(made: TargetSequence, kept: range, n_targets: int) -> None:
    short = shorten(made, 10, begin=None)
    assert short.ids.tolist() == list(kept)
    assert (short.labels != IGNORED).sum() == n_targets
    assert (short.labels[short.labels != IGNORED] == short.ids[short.labels != IGNORED]).all()


@pytest.mark.parametrize("made", [sequence(10, 4), sequence(10, 20), sequence(11, 9, 3)])
def test_the_token_that_every_sequence_begins_with_stays(made: TargetSequence) -> None:
    with_begin, without = shorten(made, 10, begin=0), shorten(made, 10, begin=None)
    assert with_begin.ids.tolist() == [0, *without.ids.tolist()[1:]]
    assert with_begin.labels.tolist() == without.labels.tolist()


def test_truncation_is_counted(llama: str) -> None:
    rows = sentences(20)
    lengths = [len(ids) for ids, _ in examples(everything(rows, llama).train)]
    data = everything(rows, llama, training=Training(max_length=12))
    n_over = 3 * sum(length > 12 for length in lengths)
    assert 0 < n_over < 60
    assert (
        f"{n_over} inputs ({n_over / 60:.1%}) were truncated to 12 tokens; the longest has {max(lengths)}" in data.notes
    )


def test_pieces_of_a_text_that_fits_are_the_text() -> None:
    for length in (2, 5, 9, 10):
        (only,) = pieces(sequence(0, length), 10)
        assert only.ids.tolist() == list(range(length))
    assert [len(piece) for piece in pieces(sequence(0, 11), 10)] == [10, 2]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"prompt": ["a"], "completion": [" "]}, "must have a completion, but 'completion' is empty in row 3"),
        ({"prompt": [None], "completion": ["a"]}, "must have a prompt, but 'prompt' is missing in row 3"),
        ({"prompt": [7], "completion": ["a"]}, "columns.prompt must hold texts, but 'prompt' holds 7 in row 3"),
        ({"messages": [[{"role": "user", "content": "hi"}]]}, "'messages' in row 3 .*of split 'train' has user"),
        ({"text": ["<|end|>"]}, "token to predict .*but row 3 .*of split 'train' becomes 1 tokens"),
    ],
)
def test_a_bad_row_is_named(llama: str, rows: dict[str, list[Any]], message: str) -> None:
    form = {"prompt": "completion", "messages": "messages", "text": "text"}[next(iter(rows))]
    good = sentences(20, form=form).drop(columns="source").astype(object)
    for column, (value,) in rows.items():
        good.at[2, column] = value
    with pytest.raises(DataError, match=message):
        everything(good, llama)


def test_the_row_of_a_made_split_is_that_of_the_data(llama: str) -> None:
    rows = sentences(40, form="text")
    rows.at[33, "text"] = "<|end|>"
    with pytest.raises(DataError, match=r"row 34 .*of split 'all'"):
        prepare(rows, model=llama, task="causal-lm")


REWRITING = TEMPLATE.replace("{{ message['content'] }}", "{{ message['content'] if loop.last else 'gone' }}")
STRICT = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns, please') }}{% endif %}" + TEMPLATE
)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "chat template, but this one has none; .*columns.prompt and columns.completion"),
        (REWRITING, "begins with its own earlier turns, but .* turn 3 of row 1 .*of split 'train'"),
        (STRICT, "refuses row 1 .*no system turns, please"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(tmp_path: Path, template: str | None, message: str) -> None:
    folder = save_tiny_llama(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    save_language_tokenizer(tmp_path, template=template)
    with pytest.raises(DataError, match=message):
        everything(sentences(3, form="messages"), folder)


def test_one_answer_at_the_end_is_enough_for_a_template_that_rewrites(tmp_path: Path) -> None:
    folder = save_tiny_llama(tmp_path)
    save_language_tokenizer(tmp_path, template=REWRITING)
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    with pytest.raises(DataError, match="turn but the last the weight 0"):
        everything(pd.DataFrame({"messages": [conversation("a", "b", "c")] * 3}), folder)
    system = [{"role": "assistant", "content": "x"}]
    with pytest.raises(DataError, match="begins with the assistant"):
        everything(pd.DataFrame({"messages": [system + turns] * 3}), folder)


def test_a_length_without_room_for_a_prediction_is_refused(llama: str) -> None:
    with pytest.raises(DataError, match=r"training.max_length >= 2 must hold, but got 1"):
        everything(sentences(3), llama, training=Training(max_length=1))


@pytest.mark.parametrize("form", FORMS)
def test_prompts_are_the_first_different_ones_and_end_where_writing_begins(
    llama: str, tokenizer: Any, form: str
) -> None:
    rows = sentences(20, form=form)
    split = everything(pd.concat([rows[:1], rows]), llama).test
    prompts = TASK.prompts(split, 4)
    assert len(prompts) == 4
    for prompt, (_, row) in zip(prompts, rows.iterrows(), strict=False):
        asked, reference = tokenizer.decode(prompt.prompt), tokenizer.decode(prompt.reference)
        if form == "completion":
            assert (asked, reference) == (row["prompt"], row["completion"] + "<|end|>")
        elif form == "messages":
            assert asked == tokenizer.apply_chat_template(
                row["messages"][:-1], tokenize=False, add_generation_prompt=True
            )
            assert reference == row["messages"][-1]["content"] + "<|im_end|>\n"
        else:
            assert asked + reference == row["text"] + "<|end|>"
            assert len(prompt.prompt) == (len(prompt.prompt) + len(prompt.reference)) // 3
