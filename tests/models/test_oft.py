from typing import Any

import pytest
import torch
from one_map import changed_map
from tiny_models import design

from autopeft.errors import DesignError
from autopeft.models.base import Base


def skew(values: torch.Tensor, size: int) -> torch.Tensor:
    matrix = torch.zeros(size, size)
    upper = [(i, j) for i in range(size) for j in range(i + 1, size)]
    for (i, j), value in zip(upper, values, strict=True):
        matrix[i, j], matrix[j, i] = value, -value
    return matrix


@pytest.mark.parametrize("exact", [True, False])
def test_the_rotation_is_the_papers(bases: dict[str, Base], exact: bool) -> None:
    """Qiu et al. 2023: R = (I + Q)(I - Q)^-1 in blocks on the diagonal; the series is that of Qiu et al. 2025."""
    size = 4
    one = changed_map(bases["bert"], "oft", {"block_size": size, "exact": exact})
    eye, blocks = torch.eye(size), []
    for values in one.tensors["oft_R"]:
        q = skew(values, size)
        if exact:
            blocks.append((eye + q) @ torch.linalg.inv(eye - q))
            torch.testing.assert_close(blocks[-1] @ blocks[-1].T, eye, atol=1e-5, rtol=0)
        else:
            # peft's series turns the other way: the transpose of the block
            blocks.append((eye + 2 * q + 2 * q @ q + 2 * q @ q @ q + q @ q @ q @ q).T)
    rotation = torch.block_diag(*blocks)
    expected = one.inputs @ rotation.T @ one.weight.T + one.bias
    torch.testing.assert_close(one.outputs, expected, atol=1e-4, rtol=1e-4)


def test_the_words() -> None:
    assert design({"oft": {"block_size": 8, "roles": ["query"]}}).describe() == "OFT b=8 on query"
    assert design({"oft": {"block_size": 8, "exact": True}}).describe() == "OFT exact b=8 on all roles"


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("llama", {"block_size": 5}, "block_size must divide in_features, but got block_size=5 .*in_features=32"),
        (
            "llama",
            {"block_size": 32, "roles": ["mlp_down"]},
            "block_size=32 .*mlp.down_proj with in_features=48; change",
        ),
        ("llama", {"block_size": 1}, "oft.block_size"),
        ("gpt2", {"block_size": 4}, "oft needs maps that store their weight as .out, in., but .*c_attn.*Conv1D"),
    ],
)
def test_what_cannot_be_is_refused(bases: dict[str, Base], name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DesignError, match=message):
        design({"oft": settings}).check(bases[name].summary)
