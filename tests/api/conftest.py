"""A whole study in seconds: a tiny model, generated text, a small space."""

from pathlib import Path
from typing import Any

import pytest

from tests.tasks.generated import reviews, save_tiny_bert

SPACE: dict[str, Any] = {
    "quantization": ["none", "nf4"],
    "blocks": {
        "lora": {"use": [True, False], "rank": [1, 2, 4], "learning_rate": {"log": [1e-3, 3e-2]}},
        "adapter": {"use": [True, False], "size": [2, 8], "layers": {"last": {"int": [1, "n"]}}},
        "prefix": {"use": [True, False], "length": {"int": [1, 4]}},
    },
    "require": {"any_of": ["lora", "adapter", "prefix"]},
}


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of a tiny random BERT with its tokenizer."""
    return save_tiny_bert(tmp_path_factory.mktemp("tiny-bert"))


@pytest.fixture(scope="session")
def reviews_csv(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a csv of 300 generated reviews."""
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    reviews(300).to_csv(path, index=False)
    return str(path)


def tiny_study(model: str, data: str, folder: Path, *, trainable_params: str) -> dict[str, Any]:
    """Return the arguments of a search that takes seconds."""
    return {
        "model": model,
        "data": data,
        "columns": {"text": "text", "label": "label", "group": "film"},
        "splits": {"train": 120, "validation": 60, "test": 60},
        "space": SPACE,
        "budget": {"trainable_params": trainable_params},
        "training": {"epochs": 1, "batch_size": 16, "precision": "fp32", "kernel": "sdpa"},
        "n_trials": 6,
        "study_name": "tiny",
        "output_dir": str(folder / "runs"),
    }


@pytest.fixture
def study(tiny_bert: str, reviews_csv: str, tmp_path: Path) -> dict[str, Any]:
    """Return the arguments of a search that takes seconds."""
    return tiny_study(tiny_bert, reviews_csv, tmp_path, trainable_params="50%")
