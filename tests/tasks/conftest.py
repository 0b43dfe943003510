"""A tiny model with a tokenizer."""

import pytest

from tests.tasks.generated import save_tiny_bert


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of a tiny random BERT with its tokenizer."""
    return save_tiny_bert(tmp_path_factory.mktemp("tiny-bert"))
