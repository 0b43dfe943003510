"""The fast path: parameters equal those of attaching, peaks come near the dry run's, what it can't say is said."""

import random

import pytest

from autopeft.costs.estimator import Estimator
from autopeft.costs.fast import VERSION, Costs, FastEstimator
from autopeft.models.base import Base, build_meta
from autopeft.spec.cost import Estimate, Workload
from autopeft.spec.design import Design
from autopeft.spec.model import Head
from autopeft.spec.space import RandomChooser, SearchSpace
from autopeft.spec.training import Precision

WORKLOAD = Workload.uniform(batch_size=4, n_tokens=16)


def make_estimator(
    base: Base, *, checkpointing: bool = False, precision: Precision = "fp32", device: str = "cpu"
) -> Estimator:
    return Estimator(
        base,
        workload=WORKLOAD,
        precision=precision,
        kernel="sdpa",
        device=device,
        n_threads=1,
        checkpointing=checkpointing,
    )


@pytest.fixture(scope="module")
def minilm_estimator(minilm: str) -> Estimator:
    head = Head(auto_class="AutoModelForSequenceClassification", labels=("negative", "positive"))
    return make_estimator(build_meta(minilm, head))


def assert_near(told: Costs | Estimate, full: Estimate, *, memory: float) -> None:
    """Assert that the fast path counts as the dry run does, and that its memory and FLOPs are near."""
    assert (told.trainable_params, told.adapter_bytes) == (full.trainable_params, full.adapter_bytes)
    assert told.peak_memory == pytest.approx(full.peak_memory, rel=memory)
    for cost in ("step_flops", "train_flops", "inference_flops"):
        assert getattr(told, cost) == pytest.approx(getattr(full, cost), rel=0.02)


def lora(**settings: object) -> Design:
    return Design.from_dict({"blocks": [{"lora": {"rank": 2, **settings}}]})


def test_peaks_of_designs_in_some_layers_are_those_of_the_dry_run(minilm_estimator: Estimator) -> None:
    fast = FastEstimator(minilm_estimator)
    designs = (
        Design(),
        lora(),
        Design.from_dict({"blocks": [{"adapter": {"size": 8, "mode": "parallel", "layers": [4, 5]}}]}),
        Design.from_dict({"blocks": [{"lora": {"rank": 4}}, {"adapter": {"size": 8, "layers": [2, 4]}}]}),
    )
    for design in designs:
        told = fast(design)
        assert told.source == "fast"
        assert_near(told, minilm_estimator(design), memory=0.01)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_layers_below_the_lowest_that_trains_leave_nothing_behind(
    minilm_estimator: Estimator, quantization: str
) -> None:
    fast = FastEstimator(minilm_estimator)
    for block in ({"adapter": {"size": 8}}, {"miss": {"rank": 2}}, {"norms": {}}):
        layered = {name: {**settings, "layers": [5]} for name, settings in block.items()}
        design = Design.from_dict({"quantization": quantization, "blocks": [layered]})
        assert_near(fast(design), minilm_estimator(design), memory=0.01)


@pytest.mark.thorough
@pytest.mark.parametrize(("precision", "device"), [("fp32", "cpu"), ("bf16", "cpu"), ("bf16", "cuda")])
def test_peaks_of_random_hybrids_are_within_bounds(
    minilm_estimator: Estimator, precision: Precision, device: str
) -> None:
    estimator = make_estimator(minilm_estimator.base("none"), precision=precision, device=device)
    fast, space = FastEstimator(estimator), SearchSpace.load("hybrid-full")
    chooser, errors = RandomChooser(random.Random(3)), []
    while len(errors) < 5:
        drawn = space.draw(chooser, estimator.base("none").summary)
        if not drawn.violation:
            told, full = fast(drawn.design), estimator(drawn.design)
            assert_near(told, full, memory=0.03)
            errors.append(abs(told.peak_memory / full.peak_memory - 1))
    assert sorted(errors)[len(errors) // 2] < 0.01


def test_two_blocks_share_what_is_outside_of_the_layers(minilm_estimator: Estimator) -> None:
    # Compacter's left factors are one set for a serial and a parallel block.
    blocks = [{"compacter": {"size": 8, "mode": mode}} for mode in ("serial", "parallel")]
    design = Design.from_dict({"blocks": blocks})
    fast = FastEstimator(minilm_estimator)
    assert fast.trainable_params(design) == minilm_estimator.trainable_params(design)


def test_what_cannot_be_put_together_gets_a_dry_run_and_says_so(minilm: str) -> None:
    head = Head(auto_class="AutoModelForSequenceClassification", labels=("negative", "positive"))
    estimator = make_estimator(build_meta(minilm, head), checkpointing=True)
    fast = FastEstimator(estimator)
    design = lora(layers=[5])
    told = fast(design)
    assert "backward pass" in fast.obstacle
    assert (told.source, told.reason) == ("dry run", fast.obstacle)
    assert fast.estimate(design) == estimator(design)
    assert told.peak_memory == estimator(design).peak_memory


def test_an_estimate_of_the_fast_path_says_whose_it_is(minilm_estimator: Estimator) -> None:
    fast, design = FastEstimator(minilm_estimator), lora(layers=[4, 5])
    told, full = fast.estimate(design), minilm_estimator(design)
    assert told.version == VERSION != full.version
    assert_near(told, full, memory=0.01)
    assert (told.head_params, told.base_bytes, told.serving) == (full.head_params, full.base_bytes, full.serving)


def test_parts_that_were_learned_are_known(minilm_estimator: Estimator) -> None:
    fast = FastEstimator(minilm_estimator)
    assert not fast.knows(lora())
    fast.learn([lora(), lora(layers=[0])])
    assert fast.knows(lora(layers=[2, 3]))
    assert not fast.knows(lora(dora=True))
