from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from one_map import changed_map
from tiny_models import design, perturb

from autopeft.errors import DesignError
from autopeft.models.artifact import pack
from autopeft.models.attach import attach
from autopeft.models.base import Base


def test_the_update_is_the_papers(bases: dict[str, Base]) -> None:
    """Kopiczko et al. 2024, eq. 2: h = W x + diag(b) B diag(d) A x."""
    one = changed_map(bases["bert"], "vera", {"rank": 6})
    t = one.tensors
    expected = torch.diag(t["lambda_b"]) @ t["up"] @ torch.diag(t["lambda_d"]) @ t["down"]
    torch.testing.assert_close(one.update, expected, atol=1e-4, rtol=1e-3)


def test_the_projections_start_as_the_paper_says_and_are_there_once(bases: dict[str, Base]) -> None:
    base = bases["llama"]
    with attach(base, design({"vera": {"rank": 10, "d_initial": 0.5}})) as attached:
        state = attached.state()
        shared = {name: tensor for name, tensor in state.items() if "projections" in name}
        assert {name: tuple(t.shape) for name, t in shared.items()} == {
            "autopeft_vera_projections.down": (10, 48),  # the widest input is the MLP's
            "autopeft_vera_projections.up": (48, 10),
        }
        for tensor in shared.values():  # He et al.: uniform with variance 2 / fan_in
            assert tensor.std() == pytest.approx((2 / tensor.shape[1]) ** 0.5, rel=0.15)
            assert tensor.abs().max() <= (6 / tensor.shape[1]) ** 0.5
        assert all(bool((t == 0.5).all()) for name, t in state.items() if name.endswith("lambda_d"))
        assert not any(bool(t.any()) for name, t in state.items() if name.endswith("lambda_b"))
        trained = sum(p.numel() for p in attached.groups["vera"])
        frozen = sum(t.numel() for t in shared.values())
        assert sum(t.numel() for t in state.values()) == attached.n_trainable + frozen
        assert trained == sum(10 + m.out_features for layer in base.summary.layers for m in layer.roles.values())


def test_another_machine_gets_the_projections_from_the_file(bases: dict[str, Base], tmp_path: Path) -> None:
    with attach(bases["llama"], design({"vera": {"rank": 10}}), seed=4) as attached:
        perturb(attached)
        state = attached.state()
        tensors = safetensors.torch.load(pack(attached, metadata={})["adapter_model.safetensors"])
    torch.testing.assert_close(tensors["base_model.vera_A"], state["autopeft_vera_projections.down"], rtol=0, atol=0)
    torch.testing.assert_close(tensors["base_model.vera_B"], state["autopeft_vera_projections.up"], rtol=0, atol=0)


def test_the_words() -> None:
    assert design({"vera": {"rank": 256, "roles": ["value", "query"]}}).describe() == "VeRA r=256 on query, value"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 513, "roles": ["key"]}, r"rank <= in_features \* out_features .*rank=513 .*32 x 16; lower vera.rank"),
        ({"rank": 2, "d_initial": 0}, "vera.d_initial"),
        ({"rank": 0}, "vera.rank"),
    ],
)
def test_what_cannot_be_is_refused(bases: dict[str, Base], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DesignError, match=message):
        design({"vera": settings}).check(bases["llama"].summary)
