"""Gradient checkpointing: the same loss and the same gradients, bit for bit, with every technique that is there."""

from itertools import combinations

import pytest
import torch
from rows import BY_NAME, ROWS
from tiny_models import ARCHITECTURES, HEADS, design, inputs_for, labels_for, perturb

from autopeft.errors import ModelError
from autopeft.models.attach import Attached, attach
from autopeft.models.base import Base, load_base
from autopeft.spec.design import Design

WITHOUT = ("mpnet",)
"""Architectures whose layers transformers cannot compute again."""
PLACES = [(row.name, name) for row in ROWS for name in ARCHITECTURES if name not in (*row.refused_on, *WITHOUT)]
N_FAST = 1
"""Architectures that each row is tried on in the fast tier, in turn."""


def fast_places() -> list[tuple[str, str]]:
    chosen = []
    for number, row in enumerate(ROWS):
        names = [name for row_name, name in PLACES if row_name == row.name]
        chosen += [(row.name, names[(number * N_FAST + turn) % len(names)]) for turn in range(min(N_FAST, len(names)))]
    return list(dict.fromkeys(chosen))


FAST = fast_places()


def step(attached: Attached, architecture: str) -> tuple[float, dict[str, torch.Tensor | None]]:
    """Return the loss of a training step and the gradients of what trains, with the same dropout every time."""
    model, head, inputs = attached.model, attached.base.head, inputs_for(architecture)
    model.train()
    model.zero_grad(set_to_none=True)
    torch.manual_seed(3)
    loss = model(**inputs, labels=labels_for(head, inputs)).loss
    penalty = attached.penalty()
    (loss if penalty is None else loss + penalty).backward()
    after = torch.rand(1)  # the generator goes on as if nothing had been computed twice
    return float(loss.detach()) + float(after), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


def check_same(base: Base, made: Design, architecture: str) -> None:
    """Check that a step with checkpointing does what one without does, and that it does compute layers again."""
    answers, n_forwards = [], []
    for checkpointing in (False, True):
        with attach(base, made, checkpointing=checkpointing) as attached:
            perturb(attached)
            calls: list[int] = []
            inner = base.model.get_submodule(next(iter(base.summary.layers[-1].roles.values())).path)
            with_hook = inner.register_forward_hook(lambda *_, calls=calls: calls.append(1))
            answers.append(step(attached, architecture))
            base.model.eval()
            with_hook.remove()
            n_forwards.append(len(calls))
    (plain_loss, plain), (loss, gradients) = answers
    assert n_forwards[1] == 2 * n_forwards[0]
    assert loss == plain_loss
    assert gradients.keys() == plain.keys()
    for name, gradient in gradients.items():
        expected = plain[name]
        assert (gradient is None) == (expected is None), name
        assert gradient is None or expected is None or torch.equal(gradient, expected), name


@pytest.mark.parametrize(("name", "architecture"), FAST)
def test_gradients_are_those_without_it(bases: dict[str, Base], name: str, architecture: str) -> None:
    base = bases[architecture]
    check_same(base, Design(blocks=(BY_NAME[name].make(base),)), architecture)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "architecture"), [place for place in PLACES if place not in FAST])
def test_gradients_are_those_without_it_everywhere(bases: dict[str, Base], name: str, architecture: str) -> None:
    base = bases[architecture]
    check_same(base, Design(blocks=(BY_NAME[name].make(base),)), architecture)


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_a_hybrid_over_a_quantized_base(folders: dict[str, str], architecture: str, quantization: str) -> None:
    base = load_base(folders[architecture], HEADS[architecture], quantization=quantization)  # type: ignore[arg-type]
    blocks = ({"lora": {"rank": 2, "dropout": 0.3}}, {"adapter": {"size": 3}}, {"prefix": {"length": 3, "gate": True}})
    for pair in combinations(blocks, 2):
        check_same(base, design(*pair, quantization=quantization), architecture)


def test_eager_attention_with_autocast(folders: dict[str, str]) -> None:
    base = load_base(folders["bert"], HEADS["bert"], kernel="eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        check_same(base, design({"lora": {"rank": 2}}, {"prefix": {"length": 2}}, {"prompt": {"length": 2}}), "bert")


def test_a_base_comes_back_without_a_trace(bases: dict[str, Base]) -> None:
    for architecture in ("bert", "t5"):
        base = bases[architecture]
        before = {name: dict(vars(module)) for name, module in base.model.named_modules()}
        with attach(base, design({"lora": {"rank": 2}}), checkpointing=True) as attached:
            step(attached, architecture)
            assert any(getattr(module, "gradient_checkpointing", False) for module in base.model.modules())
        for name, module in base.model.named_modules():
            assert vars(module).keys() == before[name].keys(), name
            assert not getattr(module, "gradient_checkpointing", False)


@pytest.mark.parametrize("architecture", ["llama", "t5", "whisper"])
def test_no_cache_is_asked_for(bases: dict[str, Base], architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers would say that a cache is incompatible with checkpointing, once for each process."""
    warned: list[object] = []
    for module in ("transformers.modeling_layers", "transformers.utils.generic"):
        monkeypatch.setattr(f"{module}.logger.warning_once", lambda *args: warned.append(args))
    with attach(bases[architecture], design({"lora": {"rank": 2}}), checkpointing=True) as attached:
        step(attached, architecture)
    assert not warned


def test_an_architecture_without_it_is_refused(bases: dict[str, Base]) -> None:
    for architecture in WITHOUT:
        base = bases[architecture]
        with pytest.raises(ModelError, match=r"MPNet.* has none; set training.checkpointing to false"):
            attach(base, Design(), checkpointing=True)
        with attach(base, Design()) as attached:  # nothing of the refused one is left
            step(attached, architecture)
