from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import design, inputs_for, logits, perturb
from torch.nn import functional

from autopeft.errors import DesignError
from autopeft.models.artifact import load, pack
from autopeft.models.attach import attach
from autopeft.models.base import Base
from autopeft.models.blocks.compacter import KroneckerLinear, LeftFactors


@pytest.mark.parametrize(("n", "rank"), [(1, 1), (2, 1), (4, 2)])
def test_a_map_is_the_sum_of_kronecker_products(n: int, rank: int) -> None:
    """Karimi Mahabadi et al. 2021, section 3, with W made as it is written."""
    factors = LeftFactors(n)
    linear = KroneckerLinear(factors, 12, 8, rank)
    torch.nn.init.normal_(linear.bias)
    hidden = torch.randn(3, 5, 12)
    weight = sum(torch.kron(factors.weight[i], linear.left[i] @ linear.right[i]) for i in range(n))
    assert isinstance(weight, torch.Tensor)
    assert weight.shape == (12, 8)
    torch.testing.assert_close(linear(hidden), hidden @ weight + linear.bias)


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_a_design_is_the_papers(bases: dict[str, Base], tmp_path: Path, name: str) -> None:
    """Adapters after attention and MLP of all layers, whose maps share one set of left factors."""
    base, inputs, n, size = bases[name], inputs_for(name), 4, 8
    with attach(base, design()):
        expected = logits(base.model, inputs)
    last = base.model.get_submodule(base.summary.layers[1].roles["mlp_down"].path)
    seen: list[torch.Tensor] = []
    handle = last.register_forward_hook(lambda _m, _args, out: seen.append(out))
    try:
        with attach(base, design({"compacter": {"size": size, "n": n}})) as attached:
            assert torch.equal(logits(base.model, inputs), expected)
            perturb(attached)
            handle_after = last.register_forward_hook(lambda _m, _args, out: seen.append(out))
            seen.clear()
            answer, state = logits(base.model, inputs), attached.state()
            handle_after.remove()
            shared = [tensor for path, tensor in state.items() if path.endswith(f"autopeft_compacter_{n}.weight")]
            assert [tensor.shape for tensor in shared] == [(n, n, n)]  # saved once
            sublayers = 2 * base.summary.n_layers
            own = sublayers * 2 * (32 + size) + sublayers * (32 + size)
            assert attached.n_trainable == base.summary.n_head_parameters + n**3 + own

            place = f"{base.summary.layers[1].path}.autopeft_compacter_mlp"
            maps = []
            for part in ("down", "up"):
                left, right = state[f"{place}.{part}.left"], state[f"{place}.{part}.right"]
                weight = sum(torch.kron(shared[0][i], left[i] @ right[i]) for i in range(n))
                maps.append((weight, state[f"{place}.{part}.bias"]))
            (down, down_bias), (up, up_bias) = maps
            plain, changed = seen
            added = functional.gelu(plain @ down + down_bias) @ up + up_bias
            torch.testing.assert_close(changed, plain + added)
            for file, content in pack(attached, metadata={}).items():
                (tmp_path / file).write_bytes(content)
    finally:
        handle.remove()
    torch.testing.assert_close(logits(load(tmp_path)[0], inputs), answer, atol=1e-5, rtol=1e-5)


def test_blocks_of_one_n_share_and_others_do_not(bases: dict[str, Base]) -> None:
    base = bases["bert"]
    blocks = [
        {"compacter": {"size": 8, "layers": [0]}},
        {"compacter": {"size": 4, "layers": [1]}},
        {"compacter": {"size": 8, "n": 2, "layers": [2]}},
    ]
    with attach(base, design(*blocks)) as attached:
        shared = {path.split(".")[-2]: t.shape for path, t in attached.state().items() if "compacter_" in path}
        factors = {name: shape for name, shape in shared.items() if name.startswith("autopeft_compacter_")}
        assert factors == {"autopeft_compacter_4": (4, 4, 4), "autopeft_compacter_2": (2, 2, 2)}


def test_it_is_said_in_words() -> None:
    made = design({"compacter": {"size": 8, "rank": 2, "layers": [0, 1]}})
    assert made.describe() == "Compacter 8 (n=4, rank 2) after attention and MLP in layers 0-1"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 9}, "compacter.*n must divide size: with n=4 take a multiple of 4 for size, such as 12, but got .*9"),
        ({"size": 12, "n": 3}, "n must divide the widths.*n=3, width=32 at attention of layer 0; change compacter.n"),
        ({"size": 8, "rank": 3}, "rank <= size / n must hold, but got rank=3, size=8, n=4; lower compacter.rank"),
        ({"size": 64}, "size <= hidden_size must hold.*lower compacter.size"),
    ],
)
def test_what_cannot_be_is_refused(bases: dict[str, Base], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DesignError, match=message):
        design({"compacter": settings}).check(bases["bert"].summary)
