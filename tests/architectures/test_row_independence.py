"""A row's answer never depends on the rows beside it: on every architecture, under every kind of design.

A short row is answered alone and beside a row seven times as long, longer than every window; a language model also
writes after it alone and padded on the left. What an architecture or a technique does not do right must be refused,
and what is refused is listed here.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autopeft.errors import AutopeftError, DesignError
from autopeft.models.attach import Attached, attach
from autopeft.models.base import Base, load_base
from autopeft.spec.design import Design
from autopeft.spec.model import Head
from autopeft.tasks.batches import collate
from autopeft.tasks.examples import Examples
from autopeft.tasks.writing import go_on
from tests.architectures import tiny
from tests.token_rows import make_examples, token_rows

N_SHORT, N_LONG, N_NEW = 4, 28, 6
DESIGNS: dict[str, list[dict[str, Any]]] = {
    "base": [],
    "lora": [{"lora": {"rank": 2}}],
    "prompt": [{"prompt": {"length": 5}}],
    "prefix": [{"prefix": {"length": 5}}],
    "prefix of a layer": [{"prefix": {"length": 5, "layers": [1]}}],
    "adapter": [{"adapter": {"size": 4, "mode": "parallel", "at": ["attention"], "activation": "gelu"}}],
}
FAST = {
    "text-classification": ("bert", "roberta", "deberta-v2", "modernbert", "mpnet", "gpt2", "llama"),
    "causal-lm": ("gpt2", "opt", "bloom", "mpt", "falcon", "gemma2", "gemma3_text", "mistral", "phi3", "gpt_oss"),
}


def cases() -> Iterator[Any]:
    for task, fast in FAST.items():
        for name in tiny.architectures(task):
            if name not in tiny.NOT_BUILT:
                yield pytest.param(task, name, id=f"{task}-{name}", marks=tiny.marks(task, name, fast))


def load(task: str, name: str, folder: Path) -> Base:
    """Return a tiny model with weights so large that errors show."""
    labels = ("no", "yes") if task == "text-classification" else ()
    base = load_base(
        tiny.save_model(task, name, folder), Head(auto_class=tiny.AUTO_CLASSES[task].__name__, labels=labels)
    )
    with torch.no_grad():
        for parameter in base.model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    return base


def perturb(attached: Attached) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for group in attached.groups.values():
            for parameter in group:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


def rows(*lengths: int) -> Examples:
    generator = np.random.default_rng(0)
    ids = [generator.integers(5, tiny.VOCABULARY, length, dtype=np.int32) for length in lengths]
    return make_examples([row.tolist() for row in ids], [0] * len(ids), fill=tiny.PAD)


def answers(model: Any, split: Examples, *, beside: bool) -> torch.Tensor:
    """Return the logits of the short row, alone or beside the long one."""
    indices, n_tokens = (np.array([0, 1]), N_LONG) if beside else (np.array([0]), N_SHORT)
    with torch.no_grad():
        logits = model(**collate(split, indices, n_tokens, torch.device("cpu")).forward).logits[0]
    return logits[:N_SHORT] if logits.dim() == 2 else logits  # of tokens, or of the row


@pytest.mark.filterwarnings("ignore")  # of architectures that say how they will change
@pytest.mark.parametrize(("task", "name"), list(cases()))
def test_a_row_is_answered_as_alone(tmp_path: Path, task: str, name: str) -> None:
    try:
        base = load(task, name, tmp_path)
    except AutopeftError:
        return  # the page of architectures says so
    base.model.eval()
    split = rows(N_SHORT, N_LONG)
    alone, beside = (answers(base.model, split, beside=beside) for beside in (False, True))
    if not torch.allclose(alone, beside, atol=1e-3 * float(alone.abs().max()), rtol=0):
        assert name in tiny.REFUSED_LATER[task]
        return
    assert name not in tiny.REFUSED_LATER[task]
    for kind, blocks in DESIGNS.items():
        try:
            attached = attach(base, Design.from_dict({"blocks": blocks}))
        except DesignError:
            continue  # tests/architectures says which
        with attached:
            perturb(attached)
            model = attached.model.eval()
            alone, beside = (answers(model, split, beside=beside) for beside in (False, True))
            assert alone.isfinite().all(), kind
            scale = float(alone.abs().max())
            torch.testing.assert_close(
                beside, alone, atol=1e-3 * scale, rtol=0, msg=lambda text, kind=kind: f"{kind}: {text}"
            )
            if task == "causal-lm":
                check_writing(model, split, kind)


def check_writing(model: Any, split: Examples, kind: str) -> None:
    """Check that the short row is gone on from as alone, and with a cache as without."""
    short, long = token_rows(split)
    tokenizer, device = tiny.make_tokenizer(), torch.device("cpu")
    tokenizer.eos_token = None
    alone = go_on(model, [short], tokenizer, n_new=N_NEW, device=device)[0]
    assert go_on(model, [short, long], tokenizer, n_new=N_NEW, device=device)[0] == alone, kind
    for n_known in range(0 if kind == "base" else len(alone)):
        ids = torch.tensor([[*short.tolist(), *alone[:n_known]]])
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, -1]
        # of two tokens that are as good as equally likely either may be written
        assert logits.max() - logits[alone[n_known]] <= 1e-3 * logits.abs().max(), f"{kind}: a cache changes the answer"
