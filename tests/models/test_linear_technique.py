"""What all techniques on linear maps have in common: sums on one map, files that stock peft opens, other dtypes."""

import itertools
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from rows import BY_NAME
from tiny_models import HEAD, design, logits, perturb

from autopeft.costs.estimate import estimate
from autopeft.models.artifact import load, pack
from autopeft.models.attach import Attached, attach
from autopeft.models.base import Base, load_base
from autopeft.spec.design import Design

ADDED = {
    "loha": {"rank": 2},
    "lokr": {"rank": 2},
    "lora": {"rank": 2},
    "miss": {"rank": 4},
    "shira": {"rank": 2},
    "vera": {"rank": 8},
}
ROWS = [name for name in BY_NAME if BY_NAME[name].kind in {*ADDED, "oft"} - {"lora"}]


def on_one_map(settings: dict[str, dict[str, Any]]) -> Design:
    return design(*({kind: {**own, "roles": ["mlp_up"], "layers": [1]}} for kind, own in settings.items()))


def write(attached: Attached, folder: Path) -> Path:
    folder.mkdir()
    for name, content in pack(attached, metadata={}).items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("kinds", list(itertools.combinations(ADDED, 2)), ids="-".join)
def test_updates_on_one_map_add_up(bases: dict[str, Base], kinds: tuple[str, str]) -> None:
    base, inputs = bases["bert"], torch.randn(5, 32)
    path = base.summary.layers[1].roles["mlp_up"].path
    plain = base.model.get_submodule(path)(inputs)
    with attach(base, on_one_map({kind: ADDED[kind] for kind in kinds})) as attached, torch.no_grad():
        changed = base.model.get_submodule(path)
        start = attached.state()
        added = []
        for which in ((0,), (1,), (0, 1)):
            attached.load_state(start)
            for index in which:
                perturb(attached, seed=index, only=attached.groups[kinds[index]])
            added.append(changed(inputs) - plain)
    assert min(change.abs().max() for change in added[:2]) > 0.1
    torch.testing.assert_close(added[2], added[0] + added[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ADDED)
def test_oft_rotates_what_was_attached_before_it(bases: dict[str, Base], kind: str) -> None:
    """In the order of attaching, by kind: (W + D) R x, or W R x + D x."""
    base, inputs = bases["bert"], torch.randn(5, 32)
    path = base.summary.layers[1].roles["mlp_up"].path
    plain = base.model.get_submodule(path)
    with attach(base, on_one_map({kind: ADDED[kind], "oft": {"block_size": 4}})) as attached, torch.no_grad():
        changed = base.model.get_submodule(path)
        start = attached.state()
        perturb(attached, only=attached.groups["oft"])
        # from what the map answers to the unit vectors alone: W R
        rotation = torch.linalg.pinv(plain.weight) @ (changed(torch.eye(32)) - plain.bias).T
        turned = changed(inputs)
        attached.load_state(start)
        perturb(attached, seed=2, only=attached.groups[kind])
        update = (changed(torch.eye(32)) - plain.bias).T - plain.weight
        perturb(attached, only=attached.groups["oft"])
        expected = turned + (inputs @ rotation.T if kind < "oft" else inputs) @ update.T
        torch.testing.assert_close(changed(inputs), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize(
    ("model", "quantization"), [("bert", "none"), ("llama", "int8"), ("llama", "nf4"), ("gpt2", "none")]
)
def test_stock_peft_opens_the_export(
    folders: dict[str, str], text: dict[str, torch.Tensor], tmp_path: Path, model: str, name: str, quantization: str
) -> None:
    base = load_base(folders[model], HEAD, quantization=quantization)  # type: ignore[arg-type]
    if model in BY_NAME[name].refused_on:
        return
    made = Design(blocks=(BY_NAME[name].make(base),), quantization=quantization)  # type: ignore[arg-type]
    kind = BY_NAME[name].kind
    not_stock = {("loha", "nf4"), ("lokr", "nf4"), ("shira", "int8")}
    stock = kind in ("oft", "vera") or (model != "gpt2" and (kind, quantization) not in not_stock)
    assert made.exports_to_peft(base.summary) == stock
    with attach(base, made) as attached:
        perturb(attached)
        expected = logits(base.model, text)
        folder = write(attached, tmp_path / "adapter")
    assert (folder / "adapter_config.json").is_file() == stock
    if stock:
        torch.manual_seed(99)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to True")  # quantized, GPT-2's maps turn
            warnings.filterwarnings("ignore", message="Sparse invariant checks")  # torch's, of peft's SHiRA
            answer = logits(peft.PeftModel.from_pretrained(base.model, str(folder)), text)
        torch.testing.assert_close(answer, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ROWS)
def test_the_estimate_sees_all_that_is_computed_and_saved(
    folders: dict[str, str], bases: dict[str, Base], name: str
) -> None:
    """Branches on random numbers, masks of random places: a dry run has no values to decide by."""
    made = Design(blocks=(BY_NAME[name].make(bases["bert"]),))
    costs = [estimate(folders["bert"], which, batch_size=2, sequence_length=8, head=HEAD) for which in (Design(), made)]
    with attach(bases["bert"], made) as attached:
        state = attached.state()
    assert costs[1].adapter_bytes == sum(tensor.numel() * tensor.itemsize for tensor in state.values())
    assert costs[1].trainable_params == attached.n_trainable
    assert costs[1].train_flops > 1.02 * costs[0].train_flops
    assert costs[1].peak_memory > costs[0].peak_memory


@pytest.mark.parametrize("name", ROWS)
def test_the_dtype_is_honoured(
    bases: dict[str, Base], text: dict[str, torch.Tensor], tmp_path: Path, name: str
) -> None:
    base = bases["llama"]
    with attach(base, Design(blocks=(BY_NAME[name].make(base),))) as attached:
        expected = logits(base.model, text)
        folder = write(attached, tmp_path / "adapter")
    model, _ = load(folder, dtype="bfloat16")
    answer = logits(model, text)
    assert answer.dtype == torch.bfloat16
    torch.testing.assert_close(answer.float(), expected, atol=0.5, rtol=0.1)


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("loha", ({"rank": 1}, {"rank": 3})),
        ("lokr", ({"rank": 1, "factor": 4}, {"rank": 2})),
        ("miss", ({"rank": 2}, {"rank": 8})),
        ("oft", ({"block_size": 4}, {"block_size": 8, "exact": True})),
        ("shira", ({"rank": 1}, {"rank": 3})),
        ("vera", ({"rank": 4}, {"rank": 16})),
    ],
)
def test_sizes_may_differ_by_layer(
    bases: dict[str, Base], text: dict[str, torch.Tensor], tmp_path: Path, kind: str, sizes: tuple[dict[str, Any], ...]
) -> None:
    base = bases["bert"]
    made = design(*({kind: {**size, "layers": [layer]}} for layer, size in enumerate(sizes)))
    count = next(row.count for row in BY_NAME.values() if row.kind == kind)
    with attach(base, made) as attached:
        trained = sum(p.numel() for p in attached.groups[kind])
        assert trained == sum(count(block, base.summary) for block in made.blocks)
        perturb(attached)
        expected = logits(base.model, text)
        folder = write(attached, tmp_path / "adapter")
    assert made.exports_to_peft(base.summary) == (kind == "loha"), "peft has patterns of ranks for LoHa"
    torch.testing.assert_close(logits(load(folder)[0], text), expected, atol=1e-5, rtol=1e-5)
