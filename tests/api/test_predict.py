"""Prediction: the rows of a file in their order, the answers of the model, and what happens to wrong requests."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result

import autopeft
from autopeft.cli import main
from autopeft.errors import ArtifactError, DataError
from autopeft.tasks.data import read
from tests.tasks.generated import reviews, save_tiny_bert

RATE = 0.02
LORA = {"rank": 4, "roles": "all", "learning_rate": RATE}
ADAPTER = {"size": 4, "learning_rate": RATE}


@pytest.fixture(scope="module")
def adapter(tiny_bert: str, reviews_csv: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an exported adapter that was trained on inputs of up to 24 tokens, with the text in column `review`."""
    folder = tmp_path_factory.mktemp("export")
    frame = pd.read_csv(reviews_csv).rename(columns={"text": "snippet"})
    frame.to_csv(folder / "reviews.csv", index=False)
    result = autopeft.search(
        model=tiny_bert,
        data=folder / "reviews.csv",
        columns={"text": "snippet", "label": "label"},
        splits={"train": 120, "validation": 60, "test": 60},
        space={"head": {"learning_rate": RATE}, "blocks": {"lora": LORA, "adapter": ADAPTER}},
        training={"epochs": 8, "batch_size": 16, "max_length": 24, "precision": "fp32", "kernel": "sdpa"},
        n_trials=1,
        output_dir=str(folder / "runs"),
        early_stopping="off",
    )
    assert isinstance(result, autopeft.SearchResult)
    hybrid = max(result.state.trials, key=lambda trial: len(trial.design.blocks))
    return result.export(hybrid, folder / "adapter")


@pytest.fixture
def rows() -> pd.DataFrame:
    """Return 50 rows without labels, short and long, with a column of their own."""
    return reviews(50, seed=7).drop(columns=["label", "film"]).assign(customer=range(100, 150))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["predict", *map(str, arguments)], catch_exceptions=False)


def one_by_one(adapter: Path, texts: "pd.Series[str]") -> list[torch.Tensor]:
    """Return each text's class probabilities: loaded as a user would, one row at a time, without padding."""
    model, tokenizer = autopeft.load(adapter)
    answers = []
    for text in texts:
        tokens = tokenizer(text, truncation=True, max_length=24, return_tensors="pt")
        with torch.no_grad():
            answers.append(model(**tokens).logits[0].softmax(-1))
    return answers


@pytest.mark.filterwarnings("ignore:.*truncated")
def test_batches_answer_what_single_rows_do(adapter: Path, rows: pd.DataFrame) -> None:
    answer = autopeft.predict(adapter, rows, columns={"text": "text"}, batch_size=7, probabilities=True)
    assert list(answer) == ["text", "customer", "prediction", "probability", "probability_bad", "probability_good"]
    pd.testing.assert_frame_equal(answer[["text", "customer"]], rows)
    expected = torch.stack(one_by_one(adapter, rows["text"])).double()
    got = torch.tensor(answer[["probability_bad", "probability_good"]].to_numpy())
    torch.testing.assert_close(got, expected, atol=2e-6, rtol=0)
    assert list(answer["prediction"]) == [("bad", "good")[int(row.argmax())] for row in expected]
    torch.testing.assert_close(torch.tensor(answer["probability"].to_numpy()), got.max(dim=1).values)
    assert answer["prediction"].nunique() == 2


def test_truncation_is_said(adapter: Path, rows: pd.DataFrame) -> None:
    _, tokenizer = autopeft.load(adapter)
    lengths = [len(tokenizer(text)["input_ids"]) for text in rows["text"]]
    n_long = sum(length > 24 for length in lengths)
    assert n_long > 0
    with pytest.warns(UserWarning, match=rf"{n_long} of 50 inputs were truncated to 24 .* longest has {max(lengths)}"):
        autopeft.predict(adapter, rows, columns={"text": "text"})


def test_the_model_itself_will_do(adapter: Path, rows: pd.DataFrame) -> None:
    short = rows.assign(snippet=rows["text"].str.split().str[:5].str.join(" "))  # named as in training: found
    loaded = autopeft.predict(autopeft.load(adapter), short, limit=9)
    pd.testing.assert_frame_equal(loaded, autopeft.predict(adapter, short, limit=9))
    assert len(loaded) == 9
    with pytest.raises(ArtifactError, match=r"one that autopeft\.load returned"):
        autopeft.predict((torch.nn.Linear(2, 2), None), short)


@pytest.mark.filterwarnings("ignore:.*truncated")
@pytest.mark.parametrize("extension", ["csv", "tsv", "jsonl", "parquet"])
def test_what_is_written_reads_back(adapter: Path, rows: pd.DataFrame, tmp_path: Path, extension: str) -> None:
    rows.to_parquet(tmp_path / "new.parquet")
    target = tmp_path / f"out.{extension}"
    done = run(adapter, "--data", tmp_path / "new.parquet", "--columns", "text=text", "--output", target)
    assert done.exit_code == 0, done.output
    assert done.stdout == ""
    readers: dict[str, Callable[[Path], pd.DataFrame]] = {
        "csv": pd.read_csv,
        "tsv": lambda path: pd.read_csv(path, sep="\t"),
        "jsonl": lambda path: pd.read_json(path, lines=True),
        "parquet": pd.read_parquet,
    }
    answer = readers[extension](target)
    assert list(answer) == ["text", "customer", "prediction", "probability"]
    assert list(answer["customer"]) == list(rows["customer"])
    assert [path.name for path in tmp_path.iterdir()].count(target.name) == 1
    assert not list(tmp_path.glob("*.part"))


def test_a_pipe_gets_csv_and_nothing_else(adapter: Path, rows: pd.DataFrame, tmp_path: Path) -> None:
    rows.rename(columns={"text": "snippet"}).to_csv(tmp_path / "new.csv", index=False)
    command = [sys.executable, "-m", "autopeft", "predict", str(adapter), "--data", str(tmp_path / "new.csv")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == "snippet,customer,prediction,probability"
    assert len(lines) == 51
    (note,) = done.stderr.splitlines()
    assert note.startswith("note: ")
    assert "truncated" in note


IDS = """id,zip,tweet,price,flag,snippet
001,02116,1234567890123456789,1.10,TRUE,a good film
002,00501,,2.50,FALSE,"bad, ""very"" bad"
"""


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_every_value_of_a_file_comes_back_as_it_was(ending: str, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.csv").write_text(IDS)
    done = run(adapter, "--data", tmp_path / "ids.csv", "--output", tmp_path / f"out.{ending}")
    assert done.exit_code == 0, done.output
    answer = read(tmp_path / f"out.{ending}")["all"].rows
    assert answer.drop(columns=["prediction", "probability"]).to_csv(index=False) == IDS


def test_a_frame_keeps_its_index_and_dtypes(adapter: Path) -> None:
    frame = pd.DataFrame(
        {
            "snippet": ["good1", "bad1", "good2"],
            "id": pd.array([2**62 + 1, None, 3], dtype="Int64"),
            "kind": pd.Categorical(["x", "y", "x"]),
            7: pd.to_datetime(["2026-01-01", None, "2026-01-03"]),
        },
        index=pd.Index(["r", "s", "r"], name="row"),
    )
    answer = autopeft.predict(adapter, frame)
    pd.testing.assert_frame_equal(answer.iloc[:, :4], frame)
    assert answer["prediction"].notna().all()


def write(frame: pd.DataFrame, path: Path) -> Path:
    frame.to_csv(path, index=False)
    return path


MISTAKES: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], list[str], str]] = {
    "no column of that role": (lambda rows: rows.rename(columns={"text": "words"}), [], "columns.text must be given"),
    "unknown column": (lambda rows: rows, ["--columns", "text=reviw"], "must be a column of the data, but got 'reviw'"),
    "unknown role": (lambda rows: rows, ["--columns", "txt=text"], "did you mean 'text'"),
    "no pair": (lambda rows: rows, ["--columns", "text"], "ROLE=COLUMN"),
    "no rows": (lambda rows: rows[:0], [], "must have rows"),
    "an empty text": (lambda rows: rows.assign(text=[*rows["text"][:-1], " "]), [], "row 50"),
    "a column that would be lost": (lambda rows: rows.assign(prediction=1), [], "new columns, .* 'prediction'"),
    "unknown split": (lambda rows: rows, ["--split", "test"], "split must be one of all, but got 'test'"),
    "unknown device": (lambda rows: rows, ["--device", "warp"], "'warp'"),
    "unknown extension": (lambda rows: rows, ["--output", "out.xlsx"], "must end with .csv"),
    "no such folder": (lambda rows: rows, ["--output", "nowhere/out.csv"], "'nowhere' is not there"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(mistake: str, adapter: Path, rows: pd.DataFrame, tmp_path: Path) -> None:
    change, options, message = MISTAKES[mistake]
    done = run(adapter, "--data", write(change(rows), tmp_path / "new.csv"), *options)
    assert done.exit_code == 2, done.output
    assert re.search(message, done.stderr), done.stderr
    assert done.stdout == ""


def test_data_without_a_byte_and_data_of_several_splits(adapter: Path, rows: pd.DataFrame, tmp_path: Path) -> None:
    (tmp_path / "empty.csv").touch()
    assert "empty.csv' cannot be read as csv" in run(adapter, "--data", tmp_path / "empty.csv").stderr
    with pytest.raises(DataError, match="the data has a, b; name one as split"):
        autopeft.predict(adapter, {"a": rows, "b": rows})


def test_a_folder_that_is_no_adapter(tiny_bert: str, rows: pd.DataFrame, tmp_path: Path) -> None:
    data = write(rows, tmp_path / "new.csv")
    for folder, message in ((tiny_bert, "must have autopeft.json"), (tmp_path / "none", "no folder is at")):
        done = run(folder, "--data", data)
        assert done.exit_code == 2
        assert message in done.stderr


def test_another_base_model_is_refused(adapter: Path, rows: pd.DataFrame, tmp_path: Path) -> None:
    other = save_tiny_bert(tmp_path / "other", dropout=0.2)
    data = write(rows, tmp_path / "new.csv")
    done = run(adapter, "--data", data, "--columns", "text=text", "--base-model", other)
    assert done.exit_code == 2
    assert "fits only the base model that it was trained on" in done.stderr


def test_an_adapter_of_text_pairs_wants_both(adapter: Path, rows: pd.DataFrame, tmp_path: Path) -> None:
    """An adapter of pairs would read single texts without complaint, and answer nonsense."""
    pairs = shutil.copytree(adapter, tmp_path / "pairs")
    description: dict[str, Any] = json.loads((pairs / "autopeft.json").read_text())
    description["metadata"]["columns"] = {"text": "premise", "text_pair": "hypothesis", "label": "label"}
    (pairs / "autopeft.json").write_text(json.dumps(description))
    with pytest.raises(DataError, match=r"columns.text_pair must be given"):
        autopeft.predict(pairs, rows, columns={"text": "text"})
    short = rows["text"].str.split().str[:3].str.join(" ")
    assert len(autopeft.predict(pairs, pd.DataFrame({"premise": short, "hypothesis": short}))) == 50
