from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from autopeft.costs.estimator import Estimator
from autopeft.errors import DesignError, ModelError
from autopeft.models.attach import attach
from autopeft.models.base import Base, build_meta
from autopeft.spec.cost import Workload
from autopeft.spec.design import Design
from tests.costs.conftest import BATCH_SIZE, N_TOKENS
from tests.costs.real_run import HEAD, RealRun, counted
from tests.hardware import step_shape

BLOCKS = {
    "head": [],
    "lora": [{"lora": {"rank": 8, "roles": ["query", "value"]}}],
    "adapter": [{"adapter": {"size": 64, "mode": "serial", "at": ["attention", "mlp"]}}],
    "prefix": [{"prefix": {"length": 16}}],
    "prompt": [{"prompt": {"length": 16}}],
    "adalora": [{"adalora": {"rank": 8, "roles": ["query", "value"]}}],
    "ia3": [{"ia3": {}}],
    "selective": [{"bitfit": {"layers": [0, 1, 2]}}, {"norms": {"layers": [3, 4, 5], "outer": True}}],
    "hybrid": [
        {"lora": {"rank": 4, "layers": [3, 4, 5]}},
        {"adapter": {"size": 16, "mode": "parallel"}},
        {"prefix": {"length": 4, "layers": [4, 5]}},
    ],
}
FEWER = {"int8": ("lora", "hybrid"), "nf4-dq": ("lora", "selective")}
"""Designs that stand for all over a base that differs from another one in how a weight is stored alone."""
IN_BF16 = ("lora", "adapter", "adalora", "selective", "hybrid")
"""Designs that stand for all where a setting differs from one in fp32 in its products alone."""
TOLERANCE = 0.03
SETTINGS = (
    ("none", "fp32", "sdpa"),
    ("none", "bf16", "eager"),
    ("nf4", "fp32", "sdpa"),
    ("nf4", "bf16", "eager"),
    ("int8", "fp32", "eager"),
    ("int8", "bf16", "sdpa"),
    ("nf4-dq", "fp32", "eager"),
    ("nf4-dq", "bf16", "sdpa"),
)
"""Every pair of a quantization, a precision and a kernel."""
FAST = {("none", "fp32", "sdpa"), ("nf4", "bf16", "eager"), ("int8", "bf16", "sdpa")}


def design(name: str, quantization: str = "none") -> Design:
    return Design.from_dict({"quantization": quantization, "blocks": BLOCKS[name]})


def real_run(base: Base, name: str, precision: str):
    attached = attach(base, design(name, base.quantization))
    batch_size, n_tokens = step_shape(precision, BATCH_SIZE, N_TOKENS)
    return attached, RealRun(attached, precision, batch_size=batch_size, n_tokens=n_tokens)


@pytest.mark.parametrize(
    ("quantization", "precision", "kernel"),
    [setting if setting in FAST else pytest.param(*setting, marks=pytest.mark.thorough) for setting in SETTINGS],
)
def test_peaks_are_those_of_real_steps(
    quantization: str,
    precision: str,
    kernel: str,
    loaded: Callable[..., Base],
    estimator: Callable[..., Estimator],
):
    """Torch's profiler, on the weighted model, in the second step of a bare loop; and in an evaluation."""
    estimating = estimator(precision, kernel)
    errors = {}
    for name in FEWER.get(quantization, BLOCKS if precision == "fp32" else IN_BF16):
        training, evaluation = estimating.steps(design(name, quantization))
        attached, run = real_run(loaded(quantization, precision, kernel), name, precision)
        with attached:
            errors[name, "training"] = training.peak_bytes / run.training_peak() - 1
            errors[name, "evaluation"] = evaluation.peak_bytes / run.evaluation_peak() - 1
    assert max(map(abs, errors.values())) < TOLERANCE, errors
    if precision == "fp32" and quantization != "int8":  # no kernel keeps a secret then
        assert max(map(abs, errors.values())) < 1e-4, errors


@pytest.mark.parametrize("kind", ["loha", "adalora"])
def test_adapters_in_fp32_meet_products_in_bf16(
    kind: str, loaded: Callable[..., Base], estimator: Callable[..., Estimator]
) -> None:
    """What a kernel copies to compute in one dtype is the peak of techniques that work on whole matrices."""
    made = Design.from_dict({"blocks": [{kind: {"rank": 8}}]})
    training, _ = estimator("bf16", "eager").steps(made)
    with attach(loaded("none", "bf16", "eager"), made) as attached:
        batch_size, n_tokens = step_shape("bf16", BATCH_SIZE, N_TOKENS)
        run = RealRun(attached, "bf16", batch_size=batch_size, n_tokens=n_tokens)
        assert training.peak_bytes == pytest.approx(run.training_peak(), rel=1e-3)


def test_full_fine_tuning_takes_the_weights_twice(
    loaded: Callable[..., Base], estimator: Callable[..., Estimator]
) -> None:
    """The originals wait for the design to be detached, and that takes memory."""
    made = Design.from_dict({"blocks": [{"full": {"embeddings": True}}]})
    training, evaluation = estimator().steps(made)
    with attach(loaded(), made) as attached:
        run = RealRun(attached, "fp32", batch_size=BATCH_SIZE, n_tokens=N_TOKENS)
        assert training.peak_bytes == pytest.approx(run.training_peak(), rel=1e-4)
        assert evaluation.peak_bytes == pytest.approx(run.evaluation_peak(), rel=1e-4)
        assert evaluation.peak_bytes > 8 * attached.n_trainable


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("name", ["lora", "adalora", "hybrid"])
def test_flops_are_those_that_torch_counts_in_a_real_step(
    name: str, quantization: str, kernel: str, loaded: Callable[..., Base], estimator: Callable[..., Estimator]
):
    """Exactly; torch is given the formulas that it lacks: CPU flash attention and 4-bit products."""
    training, evaluation = estimator(kernel=kernel).steps(design(name, quantization))
    attached, run = real_run(loaded(quantization, "fp32", kernel), name, "fp32")
    with attached:
        attached.model.train()
        assert training.flops == counted(run.train)
        attached.model.eval()
        assert evaluation.flops == counted(run.evaluate)


@pytest.mark.parametrize("name", BLOCKS)
def test_trainable_parameters_are_counted_not_computed(
    name: str, loaded: Callable[..., Base], estimator: Callable[..., Estimator]
):
    with attach(loaded(), design(name)) as attached:
        trainable = sum(p.numel() for p in attached.model.parameters() if p.requires_grad)
        head = sum(p.numel() for p in attached.model.classifier.parameters())
        exported = sum(tensor.nbytes for tensor in attached.state().values())
    answer = estimator()(design(name))
    assert answer.trainable_params == trainable
    assert answer.head_params == head
    assert answer.adapter_bytes == exported


def test_evaluation_counts_where_it_needs_more(estimator: Callable[..., Estimator]):
    small = estimator(evaluation_batch_size=1)(design("head"))
    large = estimator(evaluation_batch_size=256)(design("head"))
    assert large.peak_memory > 1.5 * small.peak_memory
    assert large.inference_flops == small.inference_flops


def test_flops_of_a_full_training_follow_its_tokens(minilm: str):
    def train_flops(n_tokens: int) -> int:
        workload = Workload(
            batch_size=4, evaluation_batch_size=4, max_tokens=64, n_steps=10, n_examples=40, n_train_tokens=n_tokens
        )
        return Estimator(base, workload=workload, precision="fp32", kernel="sdpa", device="cpu")(
            design("lora")
        ).train_flops

    base = build_meta(minilm, HEAD)
    training, _ = Estimator(
        base,
        workload=Workload(
            batch_size=4, evaluation_batch_size=4, max_tokens=64, n_steps=10, n_examples=40, n_train_tokens=2560
        ),
        precision="fp32",
        kernel="sdpa",
        device="cpu",
    ).steps(design("lora"))
    assert train_flops(40 * 64) == 10 * training.flops
    assert 0.45 * training.flops * 10 < train_flops(40 * 32) < 0.5 * training.flops * 10  # attention falls faster


def test_the_tokens_of_a_prompt_cost_computation_and_positions(estimator: Callable[..., Estimator]):
    """Every example is longer by the prompt: its FLOPs are those of steps on longer texts."""
    head, prompt = estimator()(design("head")), estimator()(design("prompt"))
    assert prompt.train_flops > 2 * head.train_flops  # 48 tokens for 32, and the gradient goes down to the input
    training, _ = estimator().steps(design("prompt"))
    assert prompt.train_flops == pytest.approx(10 * training.flops, rel=1e-9)  # ten steps at the longest length
    estimator(max_tokens=496).check(design("prompt"))
    with pytest.raises(DesignError, match=r"got length=16, longest input=497, n_positions=512; lower training.max_len"):
        estimator(max_tokens=497).trainable_params(design("prompt"))
    estimator(max_tokens=512).check(design("hybrid"))


def test_an_estimator_leaves_its_base_as_it_was(minilm: str):
    base = build_meta(minilm, HEAD)
    before = {name: id(tensor) for name, tensor in base.model.state_dict(keep_vars=True).items()}
    workload = Workload(batch_size=2, evaluation_batch_size=2, max_tokens=8, n_steps=1, n_examples=2, n_train_tokens=16)
    estimating = Estimator(base, workload=workload, precision="bf16", kernel="sdpa", device="cpu")
    for name in BLOCKS:
        estimating(design(name))
    base.verify()
    assert {name: id(tensor) for name, tensor in base.model.state_dict(keep_vars=True).items()} == before
    assert not base.model.training
    assert all(tensor.is_meta for tensor in base.model.parameters())


def test_the_same_design_is_estimated_once(estimator: Callable[..., Estimator]):
    estimating = estimator()
    first = estimating(design("hybrid"))
    assert estimating(design("hybrid")) is first


def test_cuda_is_estimated_without_it(estimator: Callable[..., Estimator]):
    """No figure of a GPU is at hand: only that its attention and dropout keep less than plain ones."""
    shape = {"batch_size": 8, "evaluation_batch_size": 8, "max_tokens": 128}
    cpu, cuda = (estimator("bf16", device=device, **shape)(design("hybrid")) for device in ("cpu", "cuda"))
    assert cuda.trainable_params == cpu.trainable_params
    assert cuda.base_bytes == cpu.base_bytes
    assert cuda.base_bytes < cuda.peak_memory < cpu.peak_memory


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["lora", "prefix", "prompt"])
def test_a_decoder_with_shared_keys_is_estimated_like_a_real_one(
    llama_config: str, name: str, kernel: str, tmp_path: Path
):
    from autopeft.models.base import load_base

    config = transformers.AutoConfig.from_pretrained(llama_config)
    torch.manual_seed(0)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    blocks = {"lora": BLOCKS["lora"], "prefix": [{"prefix": {"length": 4, "layers": [1]}}], "prompt": BLOCKS["prompt"]}[
        name
    ]
    chosen = Design.from_dict({"blocks": blocks})
    base = build_meta(str(tmp_path), HEAD, kernel=kernel)
    workload = Workload(
        batch_size=4, evaluation_batch_size=4, max_tokens=32, n_steps=1, n_examples=4, n_train_tokens=128
    )
    training, evaluation = Estimator(base, workload=workload, precision="fp32", kernel=kernel, device="cpu").steps(
        chosen
    )
    with attach(load_base(str(tmp_path), HEAD, kernel=kernel), chosen) as attached:
        run = RealRun(attached, "fp32", batch_size=4, n_tokens=32)
        assert training.peak_bytes == pytest.approx(run.training_peak(), rel=TOLERANCE)
        assert evaluation.peak_bytes == pytest.approx(run.evaluation_peak(), rel=TOLERANCE)


def test_an_estimator_needs_a_base_without_weights(loaded: Callable[..., Base], minilm: str):
    workload = Workload(batch_size=1, evaluation_batch_size=1, max_tokens=8, n_steps=1, n_examples=1, n_train_tokens=8)
    with pytest.raises(ModelError, match="meta device"):
        Estimator(loaded(), workload=workload, precision="fp32", kernel="sdpa", device="cpu")
    with pytest.raises(ModelError, match="built for the kernel"):
        Estimator(build_meta(minilm, HEAD), workload=workload, precision="fp32", kernel="eager", device="cpu")
