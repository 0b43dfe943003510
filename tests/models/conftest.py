"""Tiny models as folders, so that loading is the real thing, and real weights loaded once."""

import pytest
import torch
from tiny_models import ARCHITECTURES, HEAD, HEADS, LANGUAGE_HEAD, inputs_for, save, saved_as

from autopeft.models.base import Base, load_base


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return a model folder by architecture."""
    return {name: save(name, tmp_path_factory.mktemp(name), saved_as(name)) for name in ARCHITECTURES}


@pytest.fixture(scope="session")
def bases(folders: dict[str, str]) -> dict[str, Base]:
    """Return a loaded base by architecture; every test that attaches must detach."""
    return {name: load_base(folder, HEADS[name]) for name, folder in folders.items()}


@pytest.fixture(scope="session")
def language_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return a folder of a language model by architecture."""
    return {
        name: save(name, tmp_path_factory.mktemp(f"{name}-lm"), LANGUAGE_HEAD.auto_class) for name in ("llama", "gpt2")
    }


@pytest.fixture(scope="session")
def language_bases(language_folders: dict[str, str]) -> dict[str, Base]:
    """Return a loaded language model by architecture; every test that attaches must detach."""
    return {name: load_base(folder, LANGUAGE_HEAD) for name, folder in language_folders.items()}


@pytest.fixture(scope="session")
def real_base(minilm: str) -> Base:
    """Return MiniLM with its real weights; every test that attaches must detach."""
    return load_base(minilm, HEAD)


@pytest.fixture
def text() -> dict[str, torch.Tensor]:
    """Return three right-padded inputs of different lengths."""
    return inputs_for("bert")
