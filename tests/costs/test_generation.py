"""The peak of writing samples, against what torch's profiler sees when a real model writes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from autopeft.costs import generation
from autopeft.costs.estimator import Estimator
from autopeft.models.attach import attach
from autopeft.models.base import build_meta, load_base
from autopeft.spec.cost import Workload
from autopeft.spec.design import Design
from autopeft.spec.model import Head
from autopeft.spec.writing import MAX_NEW_TOKENS, N_SAMPLES
from autopeft.tasks import writing as sampling
from tests.costs.real_run import HEAD as CLASSES
from tests.costs.real_run import allocated_peak, model_tensors, storage_bytes
from tests.costs.test_repeats import deep
from tests.tasks.generated_language import save_tiny_llama

HEAD = Head(auto_class="AutoModelForCausalLM")
BLOCKS: dict[str, list[dict[str, Any]]] = {
    "lora": [{"lora": {"rank": 4}}],
    "prefix": [{"prefix": {"length": 8}}],
    "prompt": [{"prompt": {"length": 8}}],
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a folder with a small Llama of enough layers that a few speak for all."""
    return save_tiny_llama(tmp_path_factory.mktemp("llama"), n_layers=8, vocabulary=3_000)


def written_peak(llama: str, design: Design, precision: str, n_tokens: int) -> int:
    """Return the real peak of writing after prompts, of which all but one are short."""
    base, tokenizer = load_base(llama, HEAD), AutoTokenizer.from_pretrained(llama)
    lengths = [n_tokens, *[n_tokens // 2 + 1] * (N_SAMPLES - 1)]
    prompts = [np.arange(length, dtype=np.int32) % 200 + 5 for length in lengths]
    base.model.generation_config.eos_token_id = None
    tokenizer.eos_token = None
    tokenizer.pad_token_id = 0
    device = torch.device("cpu")

    def write() -> None:
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            answers = sampling.go_on(base.model, prompts, tokenizer, n_new=MAX_NEW_TOKENS, device=device)
            assert {len(answer) for answer in answers} == {MAX_NEW_TOKENS}

    with attach(base, design):
        base.model.eval()
        return storage_bytes(model_tensors(base.model)) + allocated_peak(write)


@pytest.mark.parametrize(
    ("name", "precision", "n_tokens"),
    [
        ("lora", "fp32", 80),
        ("lora", "bf16", 8),
        *(pytest.param(name, "bf16", 40, marks=pytest.mark.thorough) for name in ("prefix", "prompt")),
    ],
)
def test_the_peak_of_writing_is_the_one_that_the_profiler_sees(llama: str, name: str, precision: str, n_tokens: int):
    design = Design.from_dict({"blocks": BLOCKS[name]})
    workload = Workload.uniform(batch_size=1, n_tokens=n_tokens + 1)
    estimator = Estimator(build_meta(llama, HEAD), workload=workload, precision=precision, kernel="sdpa", device="cpu")
    estimate = estimator.generation(design)
    assert estimate is not None
    assert estimate.peak_bytes == pytest.approx(written_peak(llama, design, precision, n_tokens), rel=0.01)


def test_writing_counts_where_it_needs_most(llama: str):
    workload = Workload.uniform(batch_size=1, n_tokens=4)  # few scores: what is written is the longer text
    estimator = Estimator(build_meta(llama, HEAD), workload=workload, precision="fp32", kernel="sdpa", device="cpu")
    writing, (_, evaluation) = estimator.generation(Design()), estimator.steps(Design())
    assert writing is not None
    assert estimator(Design()).peak_memory == writing.peak_bytes > evaluation.peak_bytes


def test_what_writes_nothing_has_no_such_peak(llama: str, tmp_path: Path):
    for base in (build_meta(llama, CLASSES), deep("t5", tmp_path)):
        assert generation.lengths(base, Workload.uniform(batch_size=1, n_tokens=8)) is None
