from collections.abc import Callable

import pytest

from autopeft.costs.estimator import Estimator
from autopeft.models.attach import attach
from autopeft.models.base import Base
from autopeft.spec.design import Design
from tests.costs.real_run import model_tensors, storage_bytes

LORA = [{"lora": {"rank": 4}}, {"adapter": {"size": 8}}]


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4", "fp4", "nf4-dq"])
def test_a_base_is_stored_in_as_many_bytes_as_a_loaded_one(
    quantization: str, loaded: Callable[..., Base], estimator: Callable[..., Estimator]
):
    base = loaded(quantization)
    new = storage_bytes(
        tensor for path in base.summary.new_modules for tensor in model_tensors(base.model.get_submodule(path))
    )
    estimate = estimator()(Design(quantization=quantization))
    assert estimate.base_bytes == storage_bytes(model_tensors(base.model)) - new


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_the_same_parameters_train_as_on_a_loaded_base(
    quantization: str, loaded: Callable[..., Base], estimator: Callable[..., Estimator]
):
    design = Design.from_dict({"quantization": quantization, "blocks": LORA})
    with attach(loaded(quantization), design) as attached:
        trainable = sum(p.numel() for p in attached.model.parameters() if p.requires_grad)
    assert estimator().trainable_params(design) == trainable
    assert estimator()(design).trainable_params == trainable


def test_dequantizing_techniques_work_without_data(estimator: Callable[..., Estimator]):
    """DoRA reads the weight itself: peft recognises a quantized one by the name of its class."""
    plain, dora = (
        estimator()(Design.from_dict({"quantization": "nf4", "blocks": [{"lora": {"rank": 4, "dora": dora}}]}))
        for dora in (False, True)
    )
    assert dora.trainable_params > plain.trainable_params
    assert dora.peak_memory > plain.peak_memory
