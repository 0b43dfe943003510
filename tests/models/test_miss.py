from typing import Any

import pytest
import torch
from one_map import changed_map
from tiny_models import design

from autopeft.errors import DesignError
from autopeft.models.base import Base


@pytest.mark.parametrize("rank", [1, 4, 5, 32])
def test_the_update_is_the_papers(bases: dict[str, Base], rank: int) -> None:
    """Kang & Yin 2024: the shared shard D is repeated along the input; the last copy is cut."""
    one = changed_map(bases["bert"], "miss", {"rank": rank})
    shard = one.tensors["shard"]
    assert shard.shape == (rank, 48)
    expected = torch.stack([shard[column % rank] for column in range(32)], dim=1)
    torch.testing.assert_close(one.update, expected, atol=1e-4, rtol=1e-3)


def test_the_words() -> None:
    assert design({"miss": {"rank": 8, "roles": ["mlp_up"]}}).describe() == "MiSS r=8 on mlp_up"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 33}, "rank <= in_features must hold, but got rank=33 .* in_features=32; lower miss.rank"),
        ({"rank": 0}, "miss.rank"),
        ({"rank": 2, "alpha": 1}, "miss.alpha is not a known key"),
    ],
)
def test_what_cannot_be_is_refused(bases: dict[str, Base], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DesignError, match=message):
        design({"miss": settings}).check(bases["llama"].summary)
