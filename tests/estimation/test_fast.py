"""The fast path: parameters equal those of attaching, peaks come near the dry run's, what it can't say is said."""

import random

import pytest

from autopeft.estimation.estimator import Estimator
from autopeft.estimation.fast import FastEstimator
from autopeft.models.base import Base, Head, build_meta
from autopeft.spec.cost import Workload
from autopeft.spec.design import Design
from autopeft.spec.space import RandomChooser, SearchSpace

WORKLOAD = Workload.uniform(batch_size=4, n_tokens=16)


def make_estimator(base: Base, *, checkpointing: bool = False) -> Estimator:
    return Estimator(
        base,
        workload=WORKLOAD,
        precision="fp32",
        kernel="sdpa",
        device="cpu",
        n_threads=1,
        checkpointing=checkpointing,
    )


@pytest.fixture(scope="module")
def minilm_estimator(minilm: str) -> Estimator:
    head = Head(auto_class="AutoModelForSequenceClassification", labels=("negative", "positive"))
    return make_estimator(build_meta(minilm, head))


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
        assert told.trainable_params == minilm_estimator.trainable_params(design)
        assert told.peak_memory == pytest.approx(minilm_estimator(design).peak_memory, rel=0.01)


@pytest.mark.slow
def test_peaks_of_random_hybrids_are_within_bounds(minilm_estimator: Estimator) -> None:
    fast, space = FastEstimator(minilm_estimator), SearchSpace.load("hybrid-full")
    chooser, errors = RandomChooser(random.Random(3)), []
    while len(errors) < 24:
        drawn = space.draw(chooser, minilm_estimator.base("none").summary)
        if not drawn.violation:
            told, full = fast(drawn.design), minilm_estimator(drawn.design)
            assert told.trainable_params == full.trainable_params, drawn.design.describe()
            errors.append(abs(told.peak_memory / full.peak_memory - 1))
    assert sorted(errors)[len(errors) // 2] < 0.01
    assert max(errors) < 0.03


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
    assert told.source == "dry run"
    assert told.peak_memory == estimator(design).peak_memory


def test_what_a_design_surely_reaches_is_below_its_dry_run(minilm_estimator: Estimator) -> None:
    design = lora(layers=[3, 4, 5])
    least = FastEstimator(minilm_estimator).lower_bound(design)
    full = minilm_estimator(design)
    assert least["trainable_params"] == full.trainable_params
    assert 0.9 * full.peak_memory < least["peak_memory"] <= full.peak_memory
