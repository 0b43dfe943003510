from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer, RobertaConfig, RobertaForSequenceClassification

from autopeft.errors import DataError, StudyError
from autopeft.spec.training import Splits, Training
from autopeft.tasks.base import find_task
from autopeft.tasks.examples import Examples
from autopeft.tasks.prepare import prepare
from tests.tasks.generated import N_POSITIONS, reviews, save_tokenizer
from tests.token_rows import token_rows


def rows_of(split: Examples, name: str = "input_ids") -> list[list[int]]:
    return [row.tolist() for row in token_rows(split, name)]


@pytest.mark.parametrize("max_length", [None, 12])
@pytest.mark.parametrize("pair", [False, True])
def test_tokens_are_those_of_the_tokenizer(tiny_bert: str, pair: bool, max_length: int | None) -> None:
    rows = reviews(60)
    if pair:
        rows["text_pair"] = reviews(60, seed=1)["text"]
    splits = {"train": rows, "validation": rows[:20], "test": rows[20:]}
    data = prepare(splits, model=tiny_bert, training=Training(max_length=max_length))
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    texts = (rows["text"].tolist(), rows["text_pair"].tolist()) if pair else (rows["text"].tolist(),)
    expected = tokenizer(*texts, truncation=True, max_length=max_length or N_POSITIONS)
    assert rows_of(data.train) == expected["input_ids"]
    assert rows_of(data.train, "token_type_ids") == expected["token_type_ids"]
    assert [data.labels[label] for label in data.train.labels] == rows["label"].tolist()
    assert token_rows(data.train)[0].dtype == np.int32
    assert data.max_length == (max_length or N_POSITIONS)


def test_truncation_and_overlap_are_reported(tiny_bert: str) -> None:
    rows = reviews(60)
    data = prepare({"train": rows, "validation": rows[:20], "test": reviews(20, seed=5)}, model=tiny_bert)
    assert "20 of 20 validation texts occur in training too" in data.notes
    short = prepare(
        {"train": rows, "validation": rows, "test": rows}, model=tiny_bert, training=Training(max_length=10)
    )
    words = rows["text"].str.split().str.len()
    n_over = 3 * int((words + 2 > 10).sum())
    share = n_over / 180
    assert (
        f"{n_over} inputs ({share:.1%}) were truncated to 10 tokens; the longest has {words.max() + 2}" in short.notes
    )


def test_the_fingerprint_is_of_the_content(tiny_bert: str, tmp_path: Path) -> None:
    rows = reviews(100)
    rows.to_csv(tmp_path / "a.csv", index=False)
    rows.to_parquet(tmp_path / "b.parquet")
    first, same = (prepare(tmp_path / name, model=tiny_bert).fingerprint for name in ("a.csv", "b.parquet"))
    assert first == same
    changed = rows.copy()
    changed.loc[0, "text"] = "good1"
    others = {
        prepare(changed, model=tiny_bert).fingerprint,
        prepare(rows, model=tiny_bert, splits=Splits(seed=1)).fingerprint,
        prepare(rows, model=tiny_bert, training=Training(max_length=9)).fingerprint,
        prepare(rows.assign(label=rows["label"] + "!"), model=tiny_bert).fingerprint,
    }
    assert len(others | {first}) == 5


def test_integer_labels_are_in_numeric_order(tiny_bert: str) -> None:
    rows = reviews(60)
    rows["label"] = [[2, 10, 1][row % 3] for row in range(60)]
    assert prepare(rows, model=tiny_bert).labels == ("1", "2", "10")


def test_a_group_column_is_needed_only_where_splits_are_made(tiny_bert: str) -> None:
    rows = reviews(60)
    data = {"train": rows, "test": rows.drop(columns="film")}
    assert len(prepare(data, model=tiny_bert, columns={"group": "film"}).test) == 60


def with_column(name: str, values: object) -> pd.DataFrame:
    return reviews(40).assign(**{name: values})


@pytest.mark.parametrize(
    ("data", "arguments", "message"),
    [
        (with_column("label", "good"), {}, "at least two classes, but every label is 'good'"),
        (
            {"train": reviews(40), "validation": with_column("label", "fine"), "test": reviews(9)},
            {},
            "validation has 'fine', and training does not.*bad, good.*splits.validation: 0.15",
        ),
        (reviews(40), {"training": Training(max_length=4096)}, "training.max_length <= 40 must hold.*4096"),
        (reviews(40), {"splits": Splits(train=1000)}, "asked of 40 rows"),
        (
            {"train": reviews(40), "test": reviews(9).drop(columns="label")},
            {},
            "every split must have the column 'label'",
        ),
    ],
)
def test_unusable_data_is_refused(tiny_bert: str, data: object, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepare(data, model=tiny_bert, **arguments)


def test_unknown_tasks_and_metrics_are_refused(tiny_bert: str) -> None:
    with pytest.raises(
        StudyError, match="task must be one of causal-lm, text-classification, but got 'text-classificaton'; did you"
    ):
        find_task("text-classificaton")
    with pytest.raises(
        StudyError, match="accuracy, macro_f1, matthews, loss, but got 'acuracy'; did you mean 'accuracy'"
    ):
        prepare(reviews(40), model=tiny_bert, metric="acuracy")


def test_the_positions_of_a_roberta_end_before_its_table(tmp_path: Path) -> None:
    """Its positions count from the padding's on, and here the tokenizer knows no limit that would hide it."""
    config = RobertaConfig(
        vocab_size=200,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=34,
        pad_token_id=1,
    )
    model = RobertaForSequenceClassification(config)
    model.roberta.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.model_max_length = int(1e30)
    tokenizer.save_pretrained(tmp_path)
    data = prepare(reviews(60), model=str(tmp_path))
    assert data.max_length == 32
    model.eval()
    model(input_ids=torch.full((1, 32), 7))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, 33), 7))
    with pytest.raises(DataError, match="max_length <= 32 must hold for this model, but got 34"):
        prepare(reviews(60), model=str(tmp_path), training=Training(max_length=34))
