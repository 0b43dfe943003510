"""A model whose tokens go to experts: its grouped products have a stand-in in dry runs."""

from pathlib import Path

import pytest
import torch
import transformers

from autopeft.costs.estimator import Estimator
from autopeft.models.attach import attach
from autopeft.models.base import build_meta, load_base
from autopeft.spec.cost import Workload
from autopeft.spec.design import Design
from tests.costs.real_run import HEAD, RealRun
from tests.hardware import step_shape

BATCH_SIZE, N_TOKENS = 4, 32
HIDDEN, INNER, N_LAYERS = 64, 128, 3
LORA, FULL = [{"lora": {"rank": 2}}], [{"full": {"layers": [1]}}]


def config(n_experts_per_token: int) -> transformers.MixtralConfig:
    """Return that of a small Mixtral."""
    return transformers.MixtralConfig(
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=n_experts_per_token,
        vocab_size=300,
        max_position_embeddings=64,
        pad_token_id=0,
    )


def estimator(
    folder: str, precision: str = "fp32", *, batch_size: int = BATCH_SIZE, n_tokens: int = N_TOKENS
) -> Estimator:
    workload = Workload.uniform(batch_size=batch_size, n_tokens=n_tokens)
    base = build_meta(folder, HEAD, needs_weights=False)
    return Estimator(base, workload=workload, precision=precision, kernel="sdpa", device="cpu", n_threads=1)


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a folder with a small Mixtral."""
    folder = tmp_path_factory.mktemp("mixtral")
    torch.manual_seed(0)
    transformers.AutoModel.from_config(config(2)).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(("blocks", "precision"), [(LORA, "bf16"), (FULL, "fp32")], ids=["lora", "full"])
def test_peaks_of_steps_over_experts_are_those_of_real_ones(
    mixtral: str, blocks: list[dict[str, object]], precision: str
) -> None:
    design = Design.from_dict({"blocks": blocks})
    batch_size, n_tokens = step_shape(precision, BATCH_SIZE, N_TOKENS)
    training, evaluation = estimator(mixtral, precision, batch_size=batch_size, n_tokens=n_tokens).steps(design)
    with attach(load_base(mixtral, HEAD), design) as attached:
        run = RealRun(attached, precision, batch_size=batch_size, n_tokens=n_tokens)
        assert training.peak_bytes == pytest.approx(run.training_peak(), rel=1e-3)
        assert evaluation.peak_bytes == pytest.approx(run.evaluation_peak(), rel=1e-3)


def test_one_more_expert_for_each_token_costs_its_three_products(tmp_path: Path) -> None:
    flops = []
    for n_experts in (1, 2):
        config(n_experts).save_pretrained(tmp_path)
        flops.append([step.flops for step in estimator(str(tmp_path)).steps(Design.from_dict({"blocks": FULL}))])
    (training, evaluation), (more_training, more_evaluation) = flops
    products = BATCH_SIZE * N_TOKENS * 3 * 2 * HIDDEN * INNER  # of one layer, once
    assert more_evaluation - evaluation == N_LAYERS * products
    # The layer that trains has gradients for input and weights, the one above it for its input.
    assert more_training - training == (N_LAYERS + 2 + 1) * products
