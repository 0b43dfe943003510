"""The front doors for values: studies, spaces, designs and budgets, from files, from Python and from the command line.

Whatever comes in, what comes out is a value or an error of our own.
"""

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from autopeft.errors import AutopeftError, BudgetError
from autopeft.spec.block import block_class, block_kinds
from autopeft.spec.cost import Budget
from autopeft.spec.design import Design
from autopeft.spec.objective import COSTS, OBJECTIVES
from autopeft.spec.space import RandomChooser, SearchSpace
from autopeft.spec.study import StudySpec, load_study, make_study
from tests.conftest import make_summary
from tests.security.mutation import WEIRD, as_json, mutate, mutate_text

MODEL = make_summary()
SEEDS = st.integers(0, 2**62)

DESIGNS: list[dict[str, Any]] = [
    {"quantization": "none", "blocks": [{"lora": {"rank": 8, "alpha": 16, "roles": ["query"], "layers": [4, 5]}}]},
    {"quantization": "nf4", "blocks": [{"prefix": {"length": 4, "projection": True, "projection_size": 8}}]},
    {
        "blocks": [
            {"adapter": {"size": 4, "mode": "parallel", "at": ["mlp"], "layers": "all", "experts": 2}},
            {"prompt": {"length": 3}},
            {"ia3": {}},
        ]
    },
    {"blocks": [{"adalora": {"rank": 4}}, {"oft": {"block_size": 4}}, {"lokr": {"rank": 2}}, {"shira": {"rank": 2}}]},
    {"blocks": [{"compacter": {"size": 4}}, {"vera": {"rank": 4}}, {"full": {"layers": [0]}}, {"bitfit": {}}]},
    {"blocks": [{"fusion": {"adapters": ["runs/nowhere"]}}, {"deep_prompt": {"length": 2}}, {"norms": {}}]},
]
SPACES: list[dict[str, Any]] = [
    {
        "quantization": ["none", "nf4"],
        "head": {"learning_rate": {"log": [1e-4, 1e-2]}},
        "blocks": {
            "lora": {
                "use": [True, False],
                "rank": [1, 2, 4],
                "alpha_ratio": 2,
                "roles": [["query", "value"], "all"],
                "layers": {"any": "per_layer"},
                "learning_rate": "prior",
            },
            "adapter": {"use": [True, False], "size": [4, 16], "layers": {"same_as": "lora"}, "at": [["mlp"]]},
            "prefix": {"length": {"int": [1, 64], "log": True}, "layers": {"last": {"int": [1, "n"]}}},
        },
        "require": {"any_of": ["lora", "adapter"]},
    },
    {
        "blocks": {
            "lora": {"rank": [0, 1, 4], "layers": {"groups": 3, "shape": "spindle", "only": [0, 2]}},
            "ia3": {"use": [True, False], "layers": [[0, 1], "all"]},
            "second": {"kind": "lora", "rank": {"int": [1, 8]}, "layers": "all"},
        },
        "require": {"export": "peft"},
    },
]
STUDY: dict[str, Any] = {
    "model": "bert",
    "data": "reviews.csv",
    "columns": {"text": "text", "label": "label"},
    "splits": {"train": 200, "validation": 100, "test": 100},
    "task": "text-classification",
    "metric": "accuracy",
    "space": {"blocks": {"lora": {"rank": [1, 2]}}},
    "objectives": ["accuracy", "trainable_params"],
    "budget": {"trainable_params": "2%", "peak_memory": "1GiB"},
    "training": {"epochs": 1, "batch_size": 16, "max_length": 64, "precision": "auto"},
    "n_trials": 4,
    "timeout": "1h30m",
    "study_name": "reviews",
    "output_dir": "runs",
    "sampler": "auto",
    "early_stopping": {"rungs": [0.25, 0.5], "eta": 2, "strata": 3},
    "executor": {"type": "ray", "address": "auto"},
    "n_workers": 2,
    "seed": 0,
    "yardstick": None,
    "full_fine_tuning": [1e-4],
}
FIELDS = sorted({field for kind in block_kinds() for field in block_class(kind).model_fields})
WORDS = [*block_kinds(), *FIELDS, "blocks", "quantization", "use", "kind", "alpha_ratio", "learning_rate", "require"]
STUDY_WORDS = [*StudySpec.model_fields, *OBJECTIVES, "rungs", "type", "2h", "50%", "runs/x", "ray", "local"]
PIECES = ("&a ", "*a", "<<: *a", "!!python/object:os.system", "!!set", "!!omap", "? [a]", "{", "[[[[", "]", "- ", ": ")
PIECES += (
    "2001-01-01",
    "0x",
    "1_000",
    ".inf",
    ".nan",
    "~",
    "---\n",
    "...\n",
    "%YAML 1.1\n",
    '"',
    "'",
    "|\n",
    "\t",
    "#",
)
PIECES += ("\n", "\n  ", "9" * 5000, "\u0085", "!!binary aGk=", "&b [*b]", "0o7", "1e400")


def refused(door: Callable[[], object]) -> bool:
    """Return whether a front door refuses with an error of our own; another error is a failure of the test."""
    try:
        door()
    except AutopeftError as error:
        return bool(str(error))
    return False


def use_design(values: Any) -> None:
    design = Design.from_dict(values)
    design.check(MODEL)
    resolved = design.resolve(MODEL)
    assert Design.from_dict(resolved.to_dict()) == resolved
    assert resolved.key
    assert resolved.describe()
    assert resolved.serving(MODEL)


def use_space(values: Any) -> None:
    space = SearchSpace.from_dict(values)
    space.check(MODEL)
    assert space.size(MODEL) >= 0
    assert space.fingerprint
    for seed in range(3):  # not `sample`, which goes on until the requirements hold
        space.draw(RandomChooser(random.Random(seed)), MODEL)


def use_study(values: Any) -> None:
    spec = make_study(values)
    assert make_study(spec.to_dict()).to_dict() == spec.to_dict()
    Budget(spec.budget).resolve(MODEL)


def try_mutant(seed: int, examples: list[dict[str, Any]], words: list[str], use: Callable[[Any], None]) -> None:
    """Hand a front door a changed copy of an example; the seed says which one, and what is changed."""
    rng = random.Random(seed)
    values = mutate(rng.choice(examples), rng, words=words)
    note(repr(values)[:2000])
    refused(lambda: use(values))


@given(seed=SEEDS)
def test_some_designs(seed: int) -> None:
    try_mutant(seed, DESIGNS, WORDS, use_design)


@pytest.mark.slow
@settings(max_examples=4000)
@given(seed=SEEDS)
def test_designs(seed: int) -> None:
    try_mutant(seed, DESIGNS, WORDS, use_design)


@pytest.mark.slow
@settings(max_examples=1500)
@given(seed=SEEDS)
def test_spaces(seed: int) -> None:
    try_mutant(seed, SPACES, WORDS, use_space)


@pytest.mark.slow
@settings(max_examples=2500)
@given(seed=SEEDS)
def test_studies(seed: int) -> None:
    try_mutant(seed, [STUDY], STUDY_WORDS, use_study)


@pytest.mark.slow
@settings(max_examples=1000)
@given(seed=SEEDS)
def test_study_files(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    rng = random.Random(seed)
    parts = {"model": "bert", "data": "reviews.csv", **dict(rng.sample(sorted(STUDY.items()), 4))}
    text = mutate_text("\n".join(f"{key}: {as_json(value)}" for key, value in parts.items()), rng, PIECES)
    note(repr(text)[:2000])
    path = tmp_path_factory.getbasetemp() / "study.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    refused(lambda: load_study(path))


@pytest.mark.slow
@settings(max_examples=500)
@given(seed=SEEDS)
def test_space_files(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    rng = random.Random(seed)
    text = "\n".join(f"{key}: {as_json(value)}" for key, value in rng.choice(SPACES).items())
    text = mutate_text(text, rng, PIECES)
    note(repr(text)[:2000])
    path = tmp_path_factory.getbasetemp() / "space.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    refused(lambda: use_space(SearchSpace.load(str(path)).to_dict()))


@pytest.mark.slow
@settings(max_examples=500)
@given(content=st.one_of(st.binary(max_size=300), st.text(max_size=300).map(str.encode)))
def test_any_bytes_in_the_place_of_a_file(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.yaml"
    path.write_bytes(content)
    assert refused(lambda: load_study(path))
    assert refused(lambda: use_space(SearchSpace.load(str(path)).to_dict()))


@pytest.mark.slow
@settings(max_examples=500)
@given(seed=SEEDS)
def test_overrides(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    rng = random.Random(seed)
    path = tmp_path_factory.getbasetemp() / "plain.yaml"
    path.write_text("model: bert\ndata: reviews.csv\n")
    key = rng.choice([*STUDY_WORDS, "training.epochs", "budget.peak_memory", "splits.test", "a.b.c", "training.x.y"])
    text = mutate_text(f"{key}={rng.choice(['5', '2%', '[1]', '{a: 1}', '1h'])}", rng, PIECES)
    note(repr(text)[:2000])
    refused(lambda: load_study(path, [text]))


def test_budgets() -> None:
    for cost in COSTS:
        for value in WEIRD:
            try:
                Budget({cost: value}).resolve(MODEL)
            except BudgetError:
                continue
