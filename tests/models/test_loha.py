from typing import Any

import pytest
import torch
from one_map import changed_map
from tiny_models import design

from autopeft.errors import DesignError
from autopeft.models.base import Base


@pytest.mark.parametrize(("settings", "scale"), [({"rank": 2}, 1), ({"rank": 4, "alpha": 10}, 2.5)])
def test_the_update_is_the_papers(bases: dict[str, Base], settings: dict[str, Any], scale: float) -> None:
    """Hyeon-Woo et al. 2022, proposition 1: W = (X1 Y1^T) * (X2 Y2^T)."""
    one = changed_map(bases["bert"], "loha", settings)
    b1, a1, b2, a2 = (one.tensors[name] for name in ("b1", "a1", "b2", "a2"))
    expected = torch.empty(48, 32)
    for row in range(48):
        for column in range(32):
            expected[row, column] = scale * (b1[row] @ a1[:, column]) * (b2[row] @ a2[:, column])
    torch.testing.assert_close(one.update, expected, atol=1e-4, rtol=1e-3)
    assert torch.linalg.matrix_rank(one.update, rtol=1e-4) == settings["rank"] ** 2


def test_the_words() -> None:
    assert design({"loha": {"rank": 8, "roles": ["value", "query"]}}).describe() == "LoHa r=8 on query, value"
    assert design({"loha": {"rank": 8, "alpha_ratio": 2}}) == design({"loha": {"rank": 8, "alpha": 16}})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 9000}, "rank <= hidden_size must hold, but got rank=9000, hidden_size=32; lower loha.rank"),
        ({"rank": 17, "roles": ["key"]}, r"rank <= min\(in_features, out_features\).*rank=17.*lower loha.rank"),
        ({"rank": 0}, "loha.rank"),
        ({}, "loha.rank"),
        ({"rank": 2, "alpha": 1, "alpha_ratio": 1}, "exclude each other"),
    ],
)
def test_what_cannot_be_is_refused(bases: dict[str, Base], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DesignError, match=message):
        design({"loha": settings}).check(bases["llama"].summary)
