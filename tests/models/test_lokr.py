from typing import Any

import pytest
import torch
from one_map import changed_map
from tiny_models import design

from autopeft.errors import DesignError
from autopeft.models.base import Base


@pytest.mark.parametrize(
    ("settings", "left", "right"),
    [
        ({"rank": 2}, (6, 4), (8, 8)),
        ({"rank": 1, "decompose_both": True}, (6, 4), (8, 8)),
        ({"rank": 4, "alpha": 2, "factor": 2}, (2, 2), (24, 16)),
        ({"rank": 12, "factor": 4}, (4, 4), (12, 8)),
    ],
)
def test_the_update_is_the_papers(
    bases: dict[str, Base], settings: dict[str, Any], left: tuple[int, int], right: tuple[int, int]
) -> None:
    """Edalati et al. 2022, section 3: block (i, j) of the update is C[i, j] times the right factor."""
    one = changed_map(bases["bert"], "lokr", settings)
    tensors = one.tensors
    c = tensors["left"] if "left" in tensors else tensors["left_b"] @ tensors["left_a"]
    r = tensors["right"] if "right" in tensors else tensors["right_b"] @ tensors["right_a"]
    assert (tuple(c.shape), tuple(r.shape)) == (left, right)
    assert ("left_b" in tensors) == settings.get("decompose_both", False)
    assert ("right_b" in tensors) == (settings["rank"] < max(right) / 2)
    scale = settings.get("alpha", settings["rank"]) / settings["rank"]
    expected = torch.cat([torch.cat([scale * value * r for value in row], dim=1) for row in c])
    torch.testing.assert_close(one.update, expected, atol=1e-4, rtol=1e-3)


def test_the_words() -> None:
    assert design({"lokr": {"rank": 8}}).describe() == "LoKr r=8 on all roles"
    made = design({"lokr": {"rank": 2, "factor": 4, "decompose_both": True, "roles": ["query"]}})
    assert made.describe() == "LoKr r=2 factor 4 both decomposed on query"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 9}, r"rank <= max\(o2, i2\) must hold, but got rank=9 .* 8 x 8; lower lokr.rank"),
        ({"rank": 1, "factor": 5}, "factor must divide .* but got factor=5 .* of 32 x 32; change lokr.factor"),
        ({"rank": 1, "factor": 1}, "lokr.factor.*at least 2"),
        ({"rank": 2, "decompose_both": True, "roles": ["query"]}, "decompose_both needs rank < .*rank=2.* side of 4"),
        ({}, "lokr.rank"),
    ],
)
def test_what_cannot_be_is_refused(bases: dict[str, Base], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DesignError, match=message):
        design({"lokr": settings}).check(bases["llama"].summary)
