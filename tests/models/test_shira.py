import hashlib
import subprocess
import sys
from typing import Any

import pytest
import torch
from one_map import changed_map
from tiny_models import design

from autopeft.errors import DesignError
from autopeft.models.attach import attach
from autopeft.models.base import Base

DESIGN = {"shira": {"rank": 2}}


def test_the_update_is_the_papers(bases: dict[str, Base]) -> None:
    """Bhardwaj et al. 2024, section 3: W' = W + S, with values where the mask is, once each."""
    one = changed_map(bases["bert"], "shira", {"rank": 2})
    values, indices = one.tensors["values"], one.tensors["indices"]
    expected = torch.zeros(48, 32)
    for value, row, column in zip(values, *indices.tolist(), strict=True):
        assert expected[row, column] == 0
        expected[row, column] = value
    assert int((expected != 0).sum()) == 2 * (32 + 48)
    torch.testing.assert_close(one.update, expected, atol=1e-4, rtol=1e-3)
    assert torch.linalg.matrix_rank(one.update, rtol=1e-3) > 20


def masks(base: Base, seed: int) -> dict[str, str]:
    with attach(base, design(DESIGN), seed=seed) as attached:
        return {
            name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
            for name, tensor in attached.state().items()
            if name.endswith("indices")
        }


@pytest.mark.slow
def test_a_mask_is_a_function_of_design_and_seed(bases: dict[str, Base], folders: dict[str, str]) -> None:
    torch.manual_seed(5)
    first = masks(bases["llama"], 1)
    torch.manual_seed(6)
    assert masks(bases["llama"], 1) == first
    assert masks(bases["llama"], 2).keys() == first.keys()
    assert not set(masks(bases["llama"], 2).values()) & set(first.values())
    assert len(set(first.values())) == len(first), "each map has its own"
    script = (
        "import sys; sys.path.insert(0, 'tests/models');"
        "from test_shira import masks; from tiny_models import HEAD; from autopeft.models.base import load_base;"
        f"print(sorted(masks(load_base({folders['llama']!r}, HEAD), 1).items()))"
    )
    fresh = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert fresh.strip() == str(sorted(first.items()))


def test_the_words() -> None:
    assert design({"shira": {"rank": 8, "roles": ["key"]}}).describe() == "SHiRA r=8 on key"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"rank": 11, "roles": ["key"]},
            r"rank \* \(in_features \+ out_features\) <= .*rank=11 for .*k_proj of 32 x 16; lower shira.rank",
        ),
        ({"rank": 0}, "shira.rank"),
        ({"rank": 2, "seed": 1}, "shira.seed is not a known key"),
    ],
)
def test_what_cannot_be_is_refused(bases: dict[str, Base], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DesignError, match=message):
        design({"shira": settings}).check(bases["llama"].summary)
