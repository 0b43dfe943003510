"""A tiny model, prepared text, and a worker on both."""

from collections.abc import Callable
from typing import Any

import pytest

from autopeft.spec.design import Design
from autopeft.spec.training import Splits, Training
from autopeft.spec.trial import Segment
from autopeft.tasks.base import PreparedData
from autopeft.tasks.prepare import prepare
from autopeft.training.worker import Worker, WorkerSetup
from tests.tasks.generated import reviews, save_tiny_bert

LORA = Design.from_dict({"blocks": [{"lora": {"rank": 4, "roles": ["query", "value", "mlp_up"]}}]})


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of a tiny random BERT, with dropout, and its tokenizer."""
    return save_tiny_bert(tmp_path_factory.mktemp("tiny-bert"))


@pytest.fixture(scope="session")
def training() -> Training:
    """Return a training of two and a half epochs, with nothing left to choose."""
    return Training(epochs=2.5, batch_size=8, evaluation_batch_size=16, precision="fp32", kernel="sdpa", device="cpu")


@pytest.fixture(scope="session")
def data(tiny_bert: str, training: Training) -> PreparedData:
    """Return 90 training, 40 validation and 50 test examples for the tiny model."""
    splits = Splits(train=90, validation=40, test=50)
    return prepare(reviews(200), model=tiny_bert, splits=splits, training=training)


@pytest.fixture(scope="session")
def worker(tiny_bert: str, training: Training, data: PreparedData) -> Worker:
    """Return one worker: that tests share it is part of what they test."""
    return Worker(WorkerSetup(model=tiny_bert, training=training, data=data))


@pytest.fixture
def segment() -> Callable[..., Segment]:
    """Return a function that makes a segment of the LoRA design, with changes."""

    def make(**changes: Any) -> Segment:
        settings: dict[str, Any] = {
            "trial": 0,
            "design": LORA,
            "learning_rates": {"lora": 5e-3, "head": 1e-2},
            "seed": 7,
        }
        return Segment(**{**settings, **changes})

    return make
