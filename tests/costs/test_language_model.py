"""A language model's costs: its logits are the largest tensor of a step, and its head is part of the base."""

from pathlib import Path

import pytest
import torch

from autopeft.costs.estimate import estimate
from autopeft.costs.estimator import Estimator
from autopeft.errors import DesignError
from autopeft.models.attach import attach
from autopeft.models.base import build_meta, load_base
from autopeft.spec.cost import Workload
from autopeft.spec.design import Design
from autopeft.spec.model import Head
from autopeft.spec.trial import Segment
from autopeft.tasks.base import PreparedData
from autopeft.tasks.causal_lm import TASK
from autopeft.training.evaluate import evaluate
from autopeft.training.worker import Worker, WorkerSetup
from tests.costs.real_run import allocated_peak, counted, model_tensors, one_epoch, padded_data, storage_bytes
from tests.hardware import step_shape
from tests.tasks.generated_language import save_tiny_llama

BATCH_SIZE, N_TOKENS = 8, 48
HEAD = Head(auto_class="AutoModelForCausalLM")
BLOCKS = {
    "lora": [{"lora": {"rank": 4}}],
    "top": [{"lora": {"rank": 4, "layers": [2]}}],
    "adapter": [{"adapter": {"size": 8, "mode": "parallel"}}],
    "prefix": [{"prefix": {"length": 4, "layers": [1]}}],
}
# A vocabulary of more than one chunk of logits, as real ones have.
VOCABULARY = 60_000


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a folder with a small Llama whose logits outweigh everything else."""
    return save_tiny_llama(tmp_path_factory.mktemp("llama"), n_layers=3, vocabulary=VOCABULARY)


def design(name: str, quantization: str = "none") -> Design:
    return Design.from_dict({"quantization": quantization, "blocks": BLOCKS[name]})


def prepared(batch_size: int, n_tokens: int) -> PreparedData:
    return padded_data("causal-lm", batch_size=batch_size, n_tokens=n_tokens)


def estimator(
    llama: str, precision: str = "fp32", *, batch_size: int = BATCH_SIZE, n_tokens: int = N_TOKENS
) -> Estimator:
    workload = Workload(
        batch_size=batch_size,
        evaluation_batch_size=batch_size,
        max_tokens=n_tokens,
        n_steps=2,
        n_examples=2 * batch_size,
        n_train_tokens=2 * batch_size * n_tokens,
    )
    return Estimator(build_meta(llama, HEAD), workload=workload, precision=precision, kernel="sdpa", device="cpu")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("name", "quantization"), [(name, "none") for name in BLOCKS] + [("lora", "nf4"), ("lora", "int8")]
)
def test_the_training_peak_is_the_one_that_a_worker_measures(llama: str, name: str, quantization: str, precision: str):
    batch_size, n_tokens = step_shape(precision, BATCH_SIZE, N_TOKENS)
    data = prepared(batch_size, n_tokens)
    worker = Worker(WorkerSetup(model=llama, training=one_epoch(precision, batch_size), data=data))
    chosen = design(name, quantization)
    full = 2 * batch_size
    result = worker.run(Segment(trial=0, design=chosen, learning_rates={}, seed=0, stop=full, full=full))
    assert not result.error
    step, _ = estimator(llama, precision, batch_size=batch_size, n_tokens=n_tokens).steps(chosen)
    assert step.peak_bytes == pytest.approx(result.measured.peak_memory, rel=0.01)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("name", "quantization"), [("lora", "none"), ("prefix", "none"), ("lora", "nf4")])
def test_the_evaluation_peak_is_that_of_a_real_evaluation(llama: str, name: str, quantization: str, precision: str):
    """Of two batches, so that whatever the first leaves behind counts in the second."""
    batch_size, n_tokens = step_shape(precision, BATCH_SIZE, N_TOKENS)
    base, data = load_base(llama, HEAD, quantization=quantization, precision=precision), prepared(batch_size, n_tokens)
    training, chosen = one_epoch(precision, batch_size), design(name, quantization)
    with attach(base, chosen) as attached:

        def run() -> object:
            return evaluate(
                attached.model, data.validation, TASK, training, max_length=data.max_length, device=base.device
            )

        run()
        peak = storage_bytes(model_tensors(attached.model)) + allocated_peak(run)
    _, step = estimator(llama, precision, batch_size=batch_size, n_tokens=n_tokens).steps(chosen)
    assert step.peak_bytes == pytest.approx(peak, rel=0.01)


def test_logits_are_never_held_three_times_in_fp32(llama: str):
    """Plain cross-entropy keeps log-probabilities and makes two gradients of their size."""
    logits_bytes = 4 * BATCH_SIZE * N_TOKENS * VOCABULARY
    for precision, n_copies in (("fp32", 2), ("bf16", 1)):
        step, _ = estimator(llama, precision).steps(design("lora"))
        base_bytes = estimator(llama)(Design()).base_bytes
        assert n_copies * logits_bytes < step.peak_bytes - base_bytes < (n_copies + 0.9) * logits_bytes


def test_what_is_counted_is_what_is_there(llama: str):
    estimating = estimator(llama)
    answer = estimating(design("lora"))
    base = load_base(llama, HEAD)
    assert answer.base_bytes == storage_bytes(model_tensors(base.model))
    with attach(base, design("lora")) as attached:
        assert answer.trainable_params == sum(p.numel() for p in attached.model.parameters() if p.requires_grad)
        assert answer.adapter_bytes == sum(tensor.nbytes for tensor in attached.state().values())
    assert answer.head_params == 0


def test_flops_are_those_that_torch_counts(llama: str):
    step, evaluation = estimator(llama).steps(design("lora"))
    base, ids = load_base(llama, HEAD), torch.full((BATCH_SIZE, N_TOKENS), 7)
    mask = torch.ones_like(ids)
    mask[-1, N_TOKENS // 2 :] = 0
    with attach(base, design("lora")) as attached:

        def forward() -> torch.Tensor:
            return TASK.loss(attached.model(input_ids=ids, attention_mask=mask), ids)

        def run() -> None:
            forward().backward()

        attached.model.train()
        assert step.flops == counted(run)
        attached.model.eval()
        with torch.no_grad():
            assert evaluation.flops == counted(forward)
    answer = estimator(llama)(design("lora"))
    assert answer.train_flops == 2 * step.flops
    assert answer.inference_flops == evaluation.flops // BATCH_SIZE


def test_a_base_model_alone_costs_an_evaluation(llama: str):
    answer = estimator(llama)(Design())
    assert (answer.trainable_params, answer.adapter_bytes, answer.train_flops) == (0, 0, 0)
    assert answer.peak_memory > answer.base_bytes > 0


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("quantization", ["nf4", "fp4", "int8"])
def test_the_output_map_stays_unquantized_in_both(tmp_path: Path, quantization: str, tied: bool):
    folder = save_tiny_llama(tmp_path, tied=tied)
    base = load_base(folder, HEAD, quantization=quantization)
    assert type(base.model.lm_head) is torch.nn.Linear
    assert (base.model.lm_head.weight is base.model.get_input_embeddings().weight) == tied
    workload = Workload(batch_size=2, evaluation_batch_size=2, max_tokens=8, n_steps=1, n_examples=2, n_train_tokens=16)
    estimating = Estimator(build_meta(folder, HEAD), workload=workload, precision="fp32", kernel="sdpa", device="cpu")
    answer = estimating(Design(quantization=quantization))
    assert answer.base_bytes == storage_bytes(model_tensors(base.model))


def test_the_task_decides_what_is_estimated(llama: str):
    lora = {"blocks": BLOCKS["lora"]}
    as_language, as_classes = (
        estimate(llama, lora, batch_size=2, sequence_length=16, task=task)
        for task in ("causal-lm", "text-classification")
    )
    assert as_language.head_params == 0
    assert as_classes.head_params == 2 * 32
    assert as_language.peak_memory > as_classes.peak_memory
    with pytest.raises(DesignError, match=r"task must be one of .*; did you mean 'causal-lm'"):
        estimate(llama, lora, task="causal-ml")
