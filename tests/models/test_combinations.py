"""Every technique, alone and in hybrids, over every architecture and storage of the base.

Each works, or is refused with a reason before it is attached. Fast: every row on every architecture, every row over
every quantization, and a covering design, in which each pair of rows that may go together is once, and each row with
each architecture and quantization. Slow: a quarter of the whole product for single rows, half of that in test_matrix.py
so that two processes share it, and a fifth of the pairs of rows, each alone; thorough: the rest of both. Exports are
what takes longest: of single rows, one in five is loaded again here, and each in test_new_process.py.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, count, product
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from covering import covering
from rows import BY_NAME, ROWS, Row
from tiny_models import ARCHITECTURES, HEADS, content, inputs_for, labels_for, logits, perturb, structure

from autopeft.costs.estimator import Estimator
from autopeft.errors import DesignError
from autopeft.models import peft_gate
from autopeft.models.artifact import load, pack
from autopeft.models.attach import Attached, attach
from autopeft.models.base import Base, build_meta, load_base
from autopeft.models.technique import Site
from autopeft.spec.block import Block, block_kinds
from autopeft.spec.cost import Workload
from autopeft.spec.design import QUANTIZATIONS, Design

Names = tuple[str, ...]
WORKLOAD = Workload(
    batch_size=2, evaluation_batch_size=2, max_tokens=9, n_steps=1, n_examples=2, n_train_tokens=18
)  # of which a count needs nothing
NOTICES_OF_PEFT = (
    ".*is_gradient_checkpointing",  # a property that has a new name in transformers 5
    "Sparse invariant checks",  # torch's, of SHiRA's values
    "The following rank_pattern keys",  # AdaLoRA's are by parameter, and peft looks for modules
    "Unsupported layer type .*LayerNorm",  # of norm tuning, which is for such layers
)
QUANTIZED = tuple(quantization for quantization in QUANTIZATIONS if quantization != "none")


def goes_together(one: str, other: str) -> bool:
    """Say whether two of row, architecture and quantization may be in one case, by the rows' own words."""
    if one in BY_NAME and other in BY_NAME:
        first, second = BY_NAME[one], BY_NAME[other]
        return first.kind != second.kind and first.kind not in second.conflicts and second.kind not in first.conflicts
    row = BY_NAME.get(one) or BY_NAME.get(other)
    return row is None or {one, other}.isdisjoint({*row.refused_on, *row.conflicts})


SINGLES = [
    (row.name, architecture, "none", (i + j) % 5 == 0)
    for i, row in enumerate(ROWS)
    for j, architecture in enumerate(ARCHITECTURES)
]
# on BERT and Llama in turn; rows that one of them refuses take the other
STORED = [
    (
        row.name,
        next(name for name in (("bert", "llama"), ("llama", "bert"), ("vit",))[k] if name not in row.refused_on),
        q,
    )
    for i, row in enumerate(ROWS)
    for j, q in enumerate(QUANTIZED)
    for k in [2 if {"bert", "llama"} <= set(row.refused_on) else (i + j) % 2]
]
WHOLE = [
    (row.name, architecture, quantization, (i + j + k) % 5 == 0)
    for i, row in enumerate(ROWS)
    for j, architecture in enumerate(ARCHITECTURES)
    for k, quantization in enumerate(QUANTIZED)
]
BASES = list(product(ARCHITECTURES, QUANTIZATIONS))
PAIRS = [
    (pair, *next(base for base in BASES[at:] + BASES if all(goes_together(row, part) for row in pair for part in base)))
    for at, pair in zip(
        (7 * number % len(BASES) for number in count()),
        (pair for pair in combinations(BY_NAME, 2) if goes_together(*pair)),
        strict=False,
    )
]
HYBRIDS = covering((tuple(BY_NAME), ARCHITECTURES, QUANTIZATIONS), (4, 1, 1), goes_together)


def in_tiers(cases: Sequence[tuple[object, ...]], every: int) -> list[object]:
    """Mark every so many of the cases as slow, and the others as what is run before a release."""
    marks = (pytest.mark.slow, *[pytest.mark.thorough] * (every - 1))
    return [pytest.param(*case, marks=marks[number % every]) for number, case in enumerate(cases)]


@dataclass(frozen=True)
class Untouched:
    """A base before anything was attached to it: the hashes of its tensors, its modules, what it answers."""

    tensors: dict[str, str]
    modules: list[tuple[str, type, int, int]]
    answer: torch.Tensor

    @classmethod
    def of(cls, base: Base, inputs: dict[str, torch.Tensor]) -> "Untouched":
        """Read all of a base."""
        answer = logits(base.model, inputs)  # first: an int8 weight moves its scales at its first product
        return cls(content(base.model), structure(base.model), answer)


@dataclass
class Zoo:
    """Tiny models, each loaded once for each quantization, and what they answer with nothing but a new head."""

    folders: dict[str, str]
    bases: dict[tuple[str, str], Base] = field(default_factory=dict)
    starts: dict[tuple[str, str], torch.Tensor] = field(default_factory=dict)
    untouched: dict[tuple[str, str], "Untouched"] = field(default_factory=dict)
    estimators: dict[str, Estimator] = field(default_factory=dict)
    counts: dict[tuple[str, tuple[Block, ...]], int] = field(default_factory=dict)

    def base(self, architecture: str, quantization: str) -> Base:
        key = architecture, quantization
        if key not in self.bases:
            self.bases[key] = load_base(self.folders[architecture], HEADS[architecture], quantization=quantization)  # type: ignore[arg-type]
        return self.bases[key]

    def start(self, architecture: str, quantization: str) -> torch.Tensor:
        key = architecture, quantization
        if key not in self.starts:
            base = self.base(*key)
            with attach(base, Design(quantization=base.quantization)):
                self.starts[key] = logits(base.model, inputs_for(architecture))
        return self.starts[key]

    def before(self, architecture: str, quantization: str) -> "Untouched":
        """Return what a base was before anything was attached to it: every case compares with that."""
        key = architecture, quantization
        if key not in self.untouched:
            self.untouched[key] = Untouched.of(self.base(*key), inputs_for(architecture))
        return self.untouched[key]

    def count(self, architecture: str, made: Design) -> int:
        """Return what the estimator counts; how the base is stored makes no difference to what trains on it."""
        key = architecture, made.blocks
        if key not in self.counts:
            self.counts[key] = self.estimator(architecture).trainable_params(made)
        return self.counts[key]

    def estimator(self, architecture: str) -> Estimator:
        if architecture not in self.estimators:
            meta = build_meta(self.folders[architecture], HEADS[architecture])
            made = Estimator(meta, workload=WORKLOAD, precision="fp32", kernel=meta.kernel, device="cpu")
            self.estimators[architecture] = made
        return self.estimators[architecture]


@pytest.fixture(scope="module")
def zoo(folders: dict[str, str]) -> Zoo:
    return Zoo(folders)


def refusals(made: Design) -> Iterator[str]:
    """Yield what the blocks say that they cannot go with in this design: the table's only source."""
    for block in made.blocks:
        yield from (other for other in block.conflicts() if other in (made.quantization, *made.kinds))


def check_same_answer(loaded: torch.Tensor, answer: torch.Tensor, quantization: str) -> None:
    """Check that two answers differ in the order of sums alone.

    An int8 product rounds what it reads to 1/127 of a row's largest number, so that a difference in the last bit
    becomes, now and then, one step of that.
    """
    if quantization == "int8":
        assert torch.isclose(loaded, answer, atol=1e-5, rtol=1e-5).float().mean() > 0.9
    atol = 1e-3 if quantization == "int8" else 1e-5
    torch.testing.assert_close(loaded, answer, atol=atol, rtol=1e-5)


def check(zoo: Zoo, names: Names, architecture: str, quantization: str, folder: Path | None) -> None:
    """Check that a design works on a base, or is refused with a reason where its rows say so."""
    base = zoo.base(architecture, quantization)
    if any(architecture in BY_NAME[name].refused_on for name in names):
        with pytest.raises(DesignError, match=r"\w.*; "):  # the rule, then the way out
            Design(blocks=tuple(BY_NAME[name].make(base) for name in names), quantization=base.quantization).check(
                base.summary
            )
        return
    made = Design(blocks=tuple(BY_NAME[name].make(base) for name in names), quantization=base.quantization)
    if reasons := list(refusals(made)):
        with pytest.raises(DesignError, match=f"cannot go with {reasons[0]}: .*leave out one of the two"):
            made.check(base.summary)
        return
    inputs = inputs_for(architecture)
    before, start = zoo.before(architecture, quantization), zoo.start(architecture, quantization)
    with attach(base, made) as attached:
        check_numbers(zoo, names, architecture, attached)
        check_start(attached, start, inputs)
        perturb(attached)  # what is zero at the start hides the gradient of what feeds it
        answer = logits(base.model, inputs)
        assert answer.shape == before.answer.shape
        check_that_each_kind_matters(attached, answer, inputs)
        for _ in range(2):  # the second time after an evaluation
            check_gradients(attached, names, inputs)
            assert torch.equal(logits(base.model, inputs), answer)
        if folder is not None:
            for name, written in pack(attached, metadata={}).items():
                (folder / name).write_bytes(written)
    after = Untouched.of(base, inputs)
    assert after.tensors == before.tensors
    assert after.modules == before.modules
    assert torch.equal(after.answer, before.answer)
    base.verify()
    if folder is not None:
        loaded = logits(load(folder)[0], inputs)
        check_same_answer(loaded, answer, quantization)


def check_numbers(zoo: Zoo, names: Names, architecture: str, attached: Attached) -> None:
    """Four ways to count what trains: the papers' formulas, ours, the model's parameters, and the estimate's."""
    summary = attached.base.summary
    formulas = sum(BY_NAME[name].count(BY_NAME[name].make(attached.base), summary) for name in names)
    assert attached.n_trainable == summary.n_head_parameters + formulas
    assert attached.n_trainable == sum(p.numel() for p in attached.model.parameters() if p.requires_grad)
    assert attached.n_trainable == zoo.count(architecture, attached.design)


def check_start(attached: Attached, start: torch.Tensor, inputs: dict[str, torch.Tensor]) -> None:
    """Before the first step a design answers as the base with a new head does, exactly where it says so."""
    answer = logits(attached.model, inputs)
    same = torch.allclose(answer, start, atol=1e-5, rtol=1e-5)
    assert same == all(block.starts_as_base for block in attached.design.blocks), (answer - start).abs().max()


def check_that_each_kind_matters(attached: Attached, answer: torch.Tensor, inputs: dict[str, torch.Tensor]) -> None:
    state = attached.state()
    for kind, group in attached.groups.items():
        perturb(attached, seed=2, only=group)
        moved = (logits(attached.model, inputs) - answer).abs().max()
        assert not group or moved > 1e-4, f"{kind} changes nothing"
        attached.load_state(state)


def check_gradients(attached: Attached, names: Names, inputs: dict[str, torch.Tensor]) -> None:
    """One step of training reaches all that trains, and nothing else."""
    model, head = attached.model, attached.base.head
    model.train()
    model.zero_grad(set_to_none=True)
    loss = model(**inputs, labels=labels_for(head, inputs)).loss
    penalty = attached.penalty()
    (loss if penalty is None else loss + penalty).backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    reached = {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.isfinite().all())}
    moved = {name for name in reached if bool(model.get_parameter(name).grad.abs().sum() > 0)}  # type: ignore[union-attr]
    assert reached <= trained
    if any(BY_NAME[name].may_be_idle for name in names):
        assert moved
    else:
        assert moved == trained


def test_every_kind_has_a_row() -> None:
    assert {row.kind for row in ROWS} == set(block_kinds())


@pytest.mark.parametrize(
    ("name", "architecture", "quantization", "exported"),
    [case if number % 2 else pytest.param(*case, marks=pytest.mark.slow) for number, case in enumerate(SINGLES)],
)
def test_each_technique_on_each_architecture(
    zoo: Zoo, tmp_path: Path, name: str, architecture: str, quantization: str, exported: bool
) -> None:
    check(zoo, (name,), architecture, quantization, tmp_path if exported else None)


@pytest.mark.parametrize(("name", "architecture", "quantization"), STORED)
def test_each_technique_over_each_quantization(
    zoo: Zoo, tmp_path: Path, name: str, architecture: str, quantization: str
) -> None:
    check(zoo, (name,), architecture, quantization, tmp_path)


@pytest.mark.parametrize(("names", "architecture", "quantization"), HYBRIDS, ids=str)
def test_every_pair_is_in_a_hybrid_that_works(
    zoo: Zoo, tmp_path: Path, names: Names, architecture: Names, quantization: Names
) -> None:
    check(zoo, names, *architecture, *quantization, tmp_path)


def test_every_pair_that_cannot_be_is_refused_with_the_reason(zoo: Zoo) -> None:
    base = zoo.base("bert", "none")
    rows = [row for row in ROWS if "bert" not in row.refused_on]
    for one, other in combinations(rows, 2):
        reasons = one.conflicts & {other.kind} or other.conflicts & {one.kind}
        if reasons:
            with pytest.raises(DesignError, match=f"cannot go with {min(reasons)}: .*leave out one of the two"):
                Design(blocks=(one.make(base), other.make(base))).check(base.summary)


def put_out_of_force(patch: pytest.MonkeyPatch) -> None:
    """Make techniques bring their parameters and leave the forward as it is: no hook, no wrapper, no attention."""
    train, inject = Site.train, peft_gate.inject

    def train_beside(site: Site, path: str) -> torch.nn.Parameter:
        parent, _, name = path.rpartition(".")
        holder, original = site.base_module(parent), site.model.get_parameter(path)
        copy = train(site, path)
        setattr(holder, name, original)
        site.model.register_parameter(f"idle_{len(site.trainable)}", copy)
        return copy

    def inject_disabled(site: Site, peft_type: str, targets: Sequence[str], settings: Mapping[str, Any]) -> None:
        inject(site, peft_type, targets, settings)
        for path in targets:
            site.module(path).enable_adapters(False)
            for parameter in site.module(path).parameters():
                parameter.requires_grad_(True)

    patch.setattr(Site, "train", train_beside)
    patch.setattr(Site, "hook", lambda *_: None)
    patch.setattr(Site, "pre_hook", lambda *_: None)
    patch.setattr(peft_gate, "inject", inject_disabled)
    patch.setattr("autopeft.models.blocks.prefix.switch_attention", lambda *_: None)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_technique_that_does_nothing_is_noticed(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch, row: Row
) -> None:
    """The check that each technique matters fails for each one that has been put out of force."""
    (architecture,) = [name for name in ("bert", "vit") if name not in row.refused_on][:1]
    base, inputs = load_base(folders[architecture], HEADS[architecture]), inputs_for(architecture)
    made = Design(blocks=(row.make(base),))
    put_out_of_force(monkeypatch)
    attached = attach(base, made)
    perturb(attached)
    with pytest.raises(AssertionError, match=f"{row.kind} changes nothing"):
        check_that_each_kind_matters(attached, logits(base.model, inputs), inputs)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_stock_exports_open_in_peft_on_a_plain_model(zoo: Zoo, tmp_path: Path, row: Row) -> None:
    """With the same logits, and without autopeft: a plain model of transformers, and `PeftModel.from_pretrained`."""
    (architecture,) = [name for name in ("bert", "vit") if name not in row.refused_on][:1]
    base, inputs = zoo.base(architecture, "none"), inputs_for(architecture)
    made = Design(blocks=(row.make(base),))
    if not made.exports_to_peft(base.summary):
        pytest.skip("not a technique of stock peft")
    with attach(base, made) as attached:
        perturb(attached)
        answer = logits(base.model, inputs)
        for name, written in pack(attached, metadata={}).items():
            (tmp_path / name).write_bytes(written)
    plain = getattr(transformers, base.head.auto_class).from_pretrained(base.summary.name, num_labels=2)
    with warnings.catch_warnings():
        for message in NOTICES_OF_PEFT:
            warnings.filterwarnings("ignore", message=message)
        opened = logits(peft.PeftModel.from_pretrained(plain, str(tmp_path)), inputs)
    torch.testing.assert_close(opened, answer, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "architecture", "quantization", "exported"), in_tiers(WHOLE[::2], 4))
def test_each_technique_on_each_architecture_over_each_quantization(
    zoo: Zoo, tmp_path: Path, name: str, architecture: str, quantization: str, exported: bool
) -> None:
    check(zoo, (name,), architecture, quantization, tmp_path if exported else None)


@pytest.mark.parametrize(("names", "architecture", "quantization"), in_tiers(PAIRS, 5), ids=str)
def test_every_pair_alone(zoo: Zoo, names: Names, architecture: str, quantization: str) -> None:
    check(zoo, names, architecture, quantization, None)
