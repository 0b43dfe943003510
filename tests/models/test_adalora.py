"""AdaLoRA against the equations of its paper, and as a stock adapter."""

import warnings
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from tiny_models import HEAD, design, logits, perturb

from autopeft.errors import DesignError
from autopeft.models.artifact import load, pack
from autopeft.models.attach import Attached, attach
from autopeft.models.base import Base, load_base
from autopeft.models.blocks.adalora import AdaLora, most_important
from autopeft.models.technique import StepPosition

ROLES = ["query", "value", "mlp_down"]
BLOCK = {"adalora": {"rank": 2, "roles": ROLES, "interval": 1, "warmup": 0.0, "final": 0.5}}
N_MAPS = 9


def values(attached: Attached) -> torch.Tensor:
    """Return the singular values of every map, [maps, triplets]."""
    named = sorted(attached.state().items())
    return torch.cat([tensor.T for name, tensor in named if ".lora_E." in name])


def train(attached: Attached, text: dict[str, torch.Tensor], *, start: int, stop: int, full: int) -> None:
    """Make one step for each example, at a rate that makes the triplets differ."""
    trainable = [p for group in attached.groups.values() for p in group]
    optimizer = torch.optim.SGD(trainable, lr=0.1)
    for at in range(start, stop):
        torch.manual_seed(at)
        labels = torch.tensor([at % 2, 1, 0])
        torch.nn.functional.cross_entropy(attached.model(**text).logits, labels).backward()
        optimizer.step()
        attached.after_step(StepPosition(step=at, examples=at + 1, full=full))
        optimizer.zero_grad()


def test_the_update_is_the_papers(bases: dict[str, Base]) -> None:
    """Zhang et al. 2023, eq. 3: W = W0 + P Lambda Q, scaled by alpha / initial_rank."""
    base = bases["bert"]
    path = base.summary.layers[1].roles["mlp_up"].path
    plain = base.model.get_submodule(path)
    hidden = torch.randn(5, 32)
    with attach(base, design({"adalora": {"rank": 4, "alpha": 3, "roles": ["mlp_up"]}})) as attached:
        perturb(attached)
        state = attached.state()
        q, e, p = (state[f"{path}.{name}.default"] for name in ("lora_A", "lora_E", "lora_B"))
        assert (q.shape, e.shape, p.shape) == ((6, 32), (6, 1), (48, 6))
        update = p @ torch.diag(e[:, 0]) @ q
        with torch.no_grad():
            found = base.model.get_submodule(path)(hidden)
            torch.testing.assert_close(found, plain(hidden) + 3 / 6 * hidden @ update.T, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("progress", "expected"),
    # (12 - 8) x 10 maps: 120 triplets fall to 80 between 0.1 and 0.5 of the training
    [(0.0, 120), (0.1, 120), (0.2, 80 + 16), (0.3, 80 + 5), (0.4, 80 + 0), (0.5, 80), (1.0, 80)],
)
def test_the_budget_at_points_worked_out_by_hand(progress: float, expected: int) -> None:
    """40 (1 - u)^3: u = 1/4 leaves 40 x 27/64 = 16.9, 1/2 leaves 5, 3/4 leaves 0.6."""
    assert AdaLora(rank=8, warmup=0.1, final=0.5).budget(progress, 10) == expected


def test_the_most_important_of_equals_are_the_first() -> None:
    scores = torch.tensor([[1.0, 3.0, 1.0], [0.0, 1.0, 2.0]])
    for n, expected in ((0, []), (2, [1, 5]), (4, [0, 1, 2, 5]), (6, [0, 1, 2, 3, 4, 5])):
        assert most_important(scores, n).flatten().nonzero().flatten().tolist() == expected


def test_importance_is_the_papers(bases: dict[str, Base]) -> None:
    """Two steps with gradients of our own: eq. 7 to 11 in NumPy choose the same triplets."""
    base, generator = bases["bert"], np.random.default_rng(0)
    block = {**BLOCK["adalora"], "roles": ["query"], "layers": [0, 2], "final": 0.0}
    paths = [base.summary.layers[layer].roles["query"].path for layer in (0, 2)]
    with attach(base, design({"adalora": block})) as attached:
        perturb(attached)
        named = {name: p for name, p in base.model.named_parameters() if "lora_" in name}
        followed = dict.fromkeys(named, (0.0, 0.0))
        for step in range(2):
            for name, parameter in named.items():
                gradient = generator.normal(size=parameter.shape)
                parameter.grad = torch.tensor(gradient, dtype=torch.float32)
                now = np.abs(parameter.detach().numpy() * gradient)
                sensitivity = 0.85 * followed[name][0] + 0.15 * now
                followed[name] = sensitivity, 0.85 * followed[name][1] + 0.15 * np.abs(now - sensitivity)
            attached.after_step(StepPosition(step=step, examples=2 + step, full=10))
            scores = []
            for path in paths:
                q, e, p = (np.multiply(*followed[f"{path}.{m}.default"]) for m in ("lora_A", "lora_E", "lora_B"))
                scores += [e[i, 0] + np.mean(p[:, i]) + np.mean(q[i]) for i in range(3)]
            budget = 4 + int((6 - 4) * (1 - (2 + step) / 10) ** 3)
            kept = sorted(np.argsort(scores)[-budget:].tolist())
            assert values(attached).flatten().nonzero().flatten().tolist() == kept
        assert budget == 4
        base.model.zero_grad()


def test_the_penalty_is_the_papers_sum(bases: dict[str, Base]) -> None:
    """Eq. 4 and 5: gamma times the sum over maps of ||P^T P - I||_F^2 + ||Q Q^T - I||_F^2."""
    base = bases["bert"]
    with attach(base, design({"adalora": {"rank": 2, "roles": ["key"], "orthogonality": 0.3}})) as attached:
        perturb(attached)
        expected = 0.0
        for name, tensor in attached.state().items():
            if ".lora_A." in name or ".lora_B." in name:
                rows = tensor.numpy() if ".lora_A." in name else tensor.numpy().T
                expected += np.linalg.norm(rows @ rows.T - np.eye(3)) ** 2
        penalty = attached.penalty()
        assert penalty is not None
        assert penalty.item() == pytest.approx(0.3 * expected, rel=1e-5)
    with attach(base, design({"adalora": {"rank": 2, "orthogonality": 0}})) as attached:
        assert attached.penalty() is None


def test_the_budget_falls_in_training_and_the_choice_stays_at_the_end(
    bases: dict[str, Base], text: dict[str, torch.Tensor]
) -> None:
    with attach(bases["bert"], design(BLOCK)) as attached:
        perturb(attached)
        left = []
        for at in range(10):
            train(attached, text, start=at, stop=at + 1, full=10)
            left.append(int((values(attached) != 0).sum()))
            if at == 4:
                chosen = values(attached) != 0
        assert left == [18 + int(9 * (1 - u) ** 3) for u in (0.2, 0.4, 0.6, 0.8)] + [18] * 6
        assert torch.equal(values(attached) != 0, chosen)
        assert len(set((values(attached) != 0).sum(dim=1).tolist())) > 1, "maps got ranks of their own"


def test_values_that_were_taken_may_grow_back(bases: dict[str, Base], text: dict[str, torch.Tensor]) -> None:
    block = {**BLOCK["adalora"], "interval": 4}
    with attach(bases["bert"], design({"adalora": block})) as attached:
        perturb(attached)
        train(attached, text, start=0, stop=1, full=10)  # step 0 chooses
        before = values(attached)
        train(attached, text, start=1, stop=2, full=10)
        assert bool((before == 0).any())
        assert bool((values(attached) != 0).all())


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
def test_a_stock_folder_has_the_ranks_that_are_left(
    bases: dict[str, Base], folders: dict[str, str], text: dict[str, torch.Tensor], tmp_path: Path, name: str
) -> None:
    base = bases[name]
    roles = ["mlp_up", "mlp_down"]
    with attach(base, design({"adalora": {**BLOCK["adalora"], "roles": roles}})) as attached:
        perturb(attached)
        train(attached, text, start=0, stop=10, full=10)
        with torch.no_grad():
            for parameter in (p for n, p in base.model.named_parameters() if ".1." in n and ".lora_E." in n):
                parameter.zero_()  # of maps that kept nothing at all
        ranks = (values(attached) != 0).sum(dim=1)
        expected = logits(base.model, text)
        for file, content in pack(attached, metadata={}).items():
            (tmp_path / file).write_bytes(content)
    torch.testing.assert_close(logits(load(tmp_path)[0], text), expected, atol=1e-5, rtol=1e-5)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")
        warnings.filterwarnings("ignore", message=".*rank_pattern keys did not match")
        stock = transformers.AutoModelForSequenceClassification.from_pretrained(
            folders[name], num_labels=2, pad_token_id=1
        )
        model = peft.PeftModel.from_pretrained(stock, tmp_path)
    torch.testing.assert_close(logits(model, text), expected, atol=1e-5, rtol=1e-5)
    stored = [len(parameter) for name, parameter in model.named_parameters() if ".lora_E." in name]
    assert sorted(stored) == sorted(ranks.clamp(min=1).tolist())
    assert sum(stored) < 3 * len(stored)


def test_the_scale_is_a_constant_on_a_base_in_bf16(folders: dict[str, str]) -> None:
    """peft converts its divisor to the base's dtype there, and makes it a parameter that trains."""
    base = load_base(folders["bert"], HEAD, quantization="nf4", precision="bf16")
    with attach(base, design({"adalora": {"rank": 2}}, quantization="nf4")) as attached:
        maps = [linear for layer in base.summary.layers for linear in layer.roles.values()]
        expected = sum(3 * (linear.in_features + linear.out_features + 1) for linear in maps)
        assert sum(parameter.numel() for parameter in attached.groups["adalora"]) == expected
        divisors = [tensor for name, tensor in base.model.named_parameters() if ".ranknum." in name]
        assert all(tensor.item() == 3 and not tensor.requires_grad for tensor in divisors)


def test_what_training_remembers_is_not_exported(bases: dict[str, Base]) -> None:
    made = design(BLOCK, {"prefix": {"length": 2}})  # not stock: the design's own tensors alone
    with attach(bases["bert"], made) as attached:
        assert len(attached.training_state()) == 2 * 3 * N_MAPS + 1
        exported = attached.exported_tensors()
        assert not any("sensitivity" in name or "uncertainty" in name or "mask" in name for name in exported)
        kept = {name.split(".")[-2] for name in exported if "attention.self.query" in name}
        assert kept == {"lora_A", "lora_B", "lora_E", "ranknum"}


def test_the_words_and_the_defaults(bases: dict[str, Base]) -> None:
    made = design({"adalora": {"rank": 3, "roles": ["query"]}})
    assert made.blocks == (AdaLora(rank=3, initial_rank=5, alpha=10, roles=("query",)),)
    assert made.describe() == "AdaLoRA r=5->3 on query"
    assert made.serving(bases["bert"].summary) == "merge"


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([{"rank": 8, "initial_rank": 4}], "rank <= initial_rank must hold, but got rank=8, initial_rank=4"),
        ([{"rank": 2, "warmup": 0.5, "final": 0.5}], r"warmup \+ final < 1 must hold.*warmup=0.5, final=0.5"),
        ([{"rank": 24}], "initial_rank <= hidden_size must hold, but got initial_rank=36, hidden_size=32"),
        ([{"rank": 2, "layers": [0]}, {"rank": 3, "layers": [1]}], "because they share one budget.*2 and 3; take lora"),
        ([{"rank": 2, "layers": [0]}, {"rank": 2, "layers": [0, 1]}], "one adalora, but two blocks want"),
    ],
)
def test_what_cannot_be_is_refused(bases: dict[str, Base], blocks: list[dict[str, object]], message: str) -> None:
    with pytest.raises(DesignError, match=message):
        design(*({"adalora": block} for block in blocks)).check(bases["bert"].summary)


@pytest.mark.parametrize("settings", [{}, {"rank": 0}, {"rank": 2, "warmup": 1}, {"rank": 2, "interval": 0}])
def test_settings_are_validated_when_built(settings: dict[str, object]) -> None:
    with pytest.raises(DesignError, match="adalora"):
        design({"adalora": settings})


def test_beside_lora_and_ia3_on_the_same_maps(folders: dict[str, str], text: dict[str, torch.Tensor]) -> None:
    """Its layers are then inside of others', and are found there."""
    base = load_base(folders["bert"], HEAD)
    made = design(BLOCK, {"lora": {"rank": 2, "roles": ROLES}}, {"ia3": {}})
    with attach(base, made) as attached:
        perturb(attached)
        train(attached, text, start=0, stop=10, full=10)
        assert int((values(attached) != 0).sum()) == 2 * N_MAPS
