"""Search spaces: drawing, size, legality, and what their files may get wrong."""

import dataclasses
import itertools
import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.errors import SpaceError
from autopeft.spec.choices import GROUP_SHAPES, Groups, GroupShape
from autopeft.spec.learning_rates import default_learning_rate, prior
from autopeft.spec.space import Draw, RandomChooser, SearchSpace
from autopeft.spec.space_file import load_space, shipped_spaces
from tests.conftest import make_summary

MODEL = make_summary()


class Enumerator:
    """A chooser that walks every assignment of the discrete choices; rates take one value."""

    def __init__(self) -> None:
        self.trail: list[list[int]] = []
        self.depth = 0

    def _next(self, n: int) -> int:
        if self.depth == len(self.trail):
            self.trail.append([0, n])
        index = self.trail[self.depth][0]
        self.depth += 1
        return index

    def choice(self, name, options):  # type: ignore[no-untyped-def]
        return options[self._next(len(options))]

    def integer(self, name, low, high, *, log):  # type: ignore[no-untyped-def]
        return low + self._next(high - low + 1)

    def real(self, name, low, high, *, log):  # type: ignore[no-untyped-def]
        return low

    def advance(self) -> bool:
        self.depth = 0
        while self.trail and self.trail[-1][0] + 1 == self.trail[-1][1]:
            self.trail.pop()
        if not self.trail:
            return False
        self.trail[-1][0] += 1
        return True


def assignments(space: SearchSpace) -> list[Draw]:
    chooser, draws = Enumerator(), []
    while True:
        draws.append(space.draw(chooser, MODEL))
        if not chooser.advance():
            return draws


SMALL = {
    "plain": {"blocks": {"lora": {"rank": [1, 2, 4]}}},
    "use": {"quantization": ["none", "nf4"], "blocks": {"lora": {"use": [True, False], "rank": [1, 2]}}},
    "per layer": {"blocks": {"lora": {"rank": [1, 2], "layers": {"any": "per_layer"}}}},
    "last": {"blocks": {"prefix": {"length": {"int": [1, 4]}, "layers": {"last": {"int": [1, "n"]}}}}},
    "groups": {"blocks": {"lora": {"rank": [0, 1, 2], "layers": {"groups": 3}}}},
    "shared layers": {
        "blocks": {
            "lora": {"use": [True, False], "rank": [1, 2], "layers": {"any": "per_layer"}},
            "adapter": {
                "use": [True, False],
                "size": [4],
                "mode": ["serial", "parallel"],
                "layers": {"same_as": "lora"},
            },
        }
    },
    "lists": {
        "blocks": {"lora": {"rank": 2, "roles": [["query"], ["query", "value"], "all"], "layers": [[0], [4, 5], "all"]}}
    },
    "no size": {
        "blocks": {
            "ia3": {"use": [True, False], "layers": {"last": {"int": [1, 3]}}},
            "prompt": {"use": [True, False], "length": [1, 4]},
        }
    },
    "no size, shared layers": {
        "blocks": {
            "lora": {"use": [True, False], "rank": [0, 2], "layers": [[0], [4, 5], "all"]},
            "ia3": {"use": [True, False], "layers": {"same_as": "lora"}},
        }
    },
    "groups with a shape, some of them": {
        "blocks": {
            "lora": {"rank": [0, 1, 2], "layers": {"groups": 4, "shape": "spindle", "only": [1, 3]}},
            "prefix": {"length": 3, "layers": {"groups": 4, "shape": "spindle", "only": [0]}},
        }
    },
    "groups without a size": {
        "blocks": {
            "ia3": {"use": [True, False], "layers": {"groups": 3, "shape": "increasing"}},
            "lora": {"rank": [0, 4]},
        },
        "require": {"any_of": ["ia3"]},
    },
    "two of a kind": {
        "blocks": {
            "low": {"kind": "lora", "use": [True, False], "rank": [1, 2], "roles": [["query"]]},
            "high": {"kind": "lora", "rank": [0, 1, 8], "roles": [["value"]], "layers": {"any": "per_layer"}},
        },
        "require": {"any_of": ["high"]},
    },
    "any_of with sizes of 0": {
        "blocks": {
            "lora": {"rank": [0, 1, 2], "alpha_ratio": [1, 2], "layers": {"last": {"int": [0, 2]}}},
            "adapter": {"use": [True, False], "size": [0, 4], "layers": {"same_as": "lora"}},
            "ia3": {"use": [True, False], "layers": {"same_as": "lora"}},
            "prompt": {"use": [True, False], "length": {"int": [0, 2]}},
        },
        "require": {"any_of": ["adapter", "prompt"]},
    },
    "shared layers of a block that is never used": {
        "blocks": {
            "lora": {"use": False, "rank": 1, "dropout": {"float": [0, 0.5]}, "layers": {"any": "per_layer"}},
            "adapter": {"size": [4, 8], "layers": {"same_as": "lora"}},
        }
    },
    "any_of": {
        "blocks": {
            "lora": {"use": [True, False], "rank": [1, 2]},
            "adapter": {"use": [True, False], "size": [4, 8, 16]},
        },
        "require": {"any_of": ["lora", "adapter"]},
    },
}


@pytest.mark.parametrize("name", SMALL)
def test_size_counts_the_assignments(name: str) -> None:
    space = SearchSpace.from_dict(SMALL[name])
    draws = assignments(space)
    assert space.size(MODEL) == sum(not draw.violation for draw in draws)


@pytest.mark.parametrize(
    ("shape", "lengths"),
    [
        ("uniform", [3, 3, 3, 3]),
        ("increasing", [1, 2, 4, 5]),
        ("decreasing", [5, 4, 2, 1]),
        ("spindle", [2, 4, 4, 2]),
        ("bottleneck", [4, 2, 2, 4]),
    ],
)
def test_the_shapes_of_groups_on_12_layers(shape: GroupShape, lengths: list[int]) -> None:
    groups = Groups(4, shape).split(12)
    assert [len(layers) for layers in groups.values()] == lengths
    assert list(itertools.chain.from_iterable(groups.values())) == list(range(12))
    assert Groups(4, shape, (0, 3)).split(12) == {0: groups[0], 3: groups[3]}


@given(shape=st.sampled_from(GROUP_SHAPES), number=st.integers(1, 9), more=st.integers(0, 40))
def test_groups_have_every_layer_once_and_none_is_empty(shape: GroupShape, number: int, more: int) -> None:
    groups = Groups(number, shape).split(number + more)
    assert list(itertools.chain.from_iterable(groups.values())) == list(range(number + more))
    assert all(groups.values())


def test_groups_without_a_size_have_a_switch_each() -> None:
    space = SearchSpace.from_dict(SMALL["groups without a size"])
    chosen = {draw.design.blocks[0].layers for draw in assignments(space) if draw.design.kinds == ("ia3",)}
    assert chosen == {(0,), (1, 2), (3, 4, 5), (0, 1, 2), (0, 3, 4, 5), (1, 2, 3, 4, 5), "all"}
    alone = SearchSpace.from_dict({"blocks": {"ia3": {"layers": {"groups": 3, "only": [0, 2]}}}})
    assert alone.size(MODEL) == 1
    assert alone.sample(MODEL, 0).design.blocks[0].layers == (0, 1, 4, 5)


def test_entries_of_one_kind_share_a_learning_rate() -> None:
    blocks = {
        "low": {"kind": "lora", "rank": 1, "roles": [["query"]]},
        "high": {"kind": "lora", "rank": 8, "roles": [["value"]], "learning_rate": {"log": [1e-4, 1e-2]}},
    }
    space = SearchSpace.from_dict({"blocks": blocks})
    chooser = Recorder(random.Random(0))
    draw = space.draw(chooser, MODEL)
    assert chooser.names == ["lora.learning_rate"]
    assert {block.rank for block in draw.design.blocks} == {1, 8}
    assert draw.learning_rates["lora"] == chooser.values[0]


def test_entries_are_named_by_their_own_name() -> None:
    blocks = {
        "serial": {"kind": "adapter", "mode": "serial", "size": [4, 16], "at": [["mlp"]]},
        "parallel": {"kind": "adapter", "mode": "parallel", "size": [4, 16], "at": [["attention"]]},
    }
    chooser = Recorder(random.Random(0))
    draw = SearchSpace.from_dict({"blocks": blocks}).draw(chooser, MODEL)
    assert chooser.names == ["serial.size", "parallel.size"]
    sizes = {block.mode: block.size for block in draw.design.blocks}
    assert [sizes["serial"], sizes["parallel"]] == chooser.values


class Recorder:
    """Draws at random, and remembers what it was asked."""

    def __init__(self, rng: random.Random) -> None:
        self._chooser = RandomChooser(rng)
        self.names: list[str] = []
        self.values: list[object] = []

    def __getattr__(self, method: str):  # type: ignore[no-untyped-def]
        def ask(name: str, *options, **keywords):  # type: ignore[no-untyped-def]
            self.names.append(name)
            self.values.append(getattr(self._chooser, method)(name, *options, **keywords))
            return self.values[-1]

        return ask


def test_a_continuous_choice_makes_the_size_infinite_but_rates_do_not() -> None:
    rate = {"log": [1e-4, 1e-2]}
    assert SearchSpace.from_dict({"blocks": {"lora": {"rank": [1, 2], "learning_rate": rate}}}).size(MODEL) == 2
    dropout = {"float": [0.0, 0.3]}
    assert math.isinf(SearchSpace.from_dict({"blocks": {"lora": {"rank": 1, "dropout": dropout}}}).size(MODEL))


@pytest.mark.parametrize("name", SMALL)
@given(seed=st.integers(0, 10_000))
def test_draws_are_canonical_and_legal(name: str, seed: int) -> None:
    draw = SearchSpace.from_dict(SMALL[name]).draw(RandomChooser(random.Random(seed)), MODEL)
    draw.design.check(MODEL)
    assert draw.design.resolve(MODEL) == draw.design
    assert set(draw.learning_rates) == {"head", *draw.design.kinds}


def test_groups_have_a_size_each_and_0_leaves_one_out() -> None:
    designs = {draw.design for draw in assignments(SearchSpace.from_dict(SMALL["groups"]))}
    assert len(designs) == 27
    layers = [[(block.rank, block.layers) for block in design.blocks] for design in designs]
    assert [(1, (0, 1)), (2, (4, 5))] in [sorted(pairs, key=str) for pairs in layers]
    assert [] in layers


@pytest.mark.parametrize("name", [*SMALL, *shipped_spaces()])
def test_to_dict_is_lossless(name: str) -> None:
    space = load_space(name) if name in shipped_spaces() else SearchSpace.from_dict(SMALL[name])
    values = json.loads(json.dumps(space.to_dict()))
    again = SearchSpace.from_dict(values, name=space.name)
    assert again == space
    assert again.fingerprint == space.fingerprint
    assert again.draw(RandomChooser(random.Random(7)), MODEL) == space.draw(RandomChooser(random.Random(7)), MODEL)


def test_every_choice_changes_the_fingerprint() -> None:
    prints = {name: SearchSpace.from_dict(values).fingerprint for name, values in SMALL.items()}
    assert len(set(prints.values())) == len(prints)


def test_smallest_includes_the_cheapest_design() -> None:
    for values in SMALL.values():
        space = SearchSpace.from_dict(values)

        def cost(design) -> int:  # type: ignore[no-untyped-def]
            return sum(
                768
                * (1 if b.size_field is None else getattr(b, b.size_field))
                * len(b.layer_indices(MODEL))
                * (len(b.roles) if b.kind == "lora" and b.roles != "all" else 6 if b.kind == "lora" else 1)
                for b in design.blocks
            )

        trained = [d.design for d in assignments(space) if d.design.blocks and not d.violation]
        smallest = [d for d in space.smallest(MODEL) if d.blocks]
        assert min(map(cost, smallest)) == min(map(cost, trained)), values


MISTAKES = [
    ("blocks:\n  lora:\n    rnk: [1]\n", 3, "blocks.lora.rnk is not a known key; did you mean 'rank'"),
    ("blocks:\n  lorra:\n    rank: [1]\n", 2, "did you mean 'lora'"),
    ("blocks:\n  lora:\n    rank: []\n", 3, "at least one option"),
    ("blocks:\n  lora:\n    rank: {int: [8, 2]}\n", 3, "low <= high must hold, but got low=8, high=2"),
    ("blocks:\n  lora:\n    rank: {log: [0, 2]}\n", 3, "low > 0 must hold on a log scale"),
    ("blocks:\n  lora:\n    rank: [-1]\n", 3, "blocks.lora.rank"),
    ("blocks:\n  lora:\n    rank: [four]\n", 3, "but got 'four'"),
    ("blocks:\n  lora:\n    rank: [1, four]\n    roles: all\n", 3, "but got 'four'"),
    ("blocks:\n  lora:\n    rank: [1]\n    roles: [[query, vlaue]]\n", 4, "did you mean 'value'"),
    ("blocks:\n  lora:\n    rank: [1]\n    use: [true, maybe]\n", 4, "must be one of True, False"),
    ("blocks:\n  lora:\n    rank: [1]\n    layers: some\n", 4, "expected all"),
    ("blocks:\n  lora:\n    rank: [1]\n    layers: {same_as: adapter}\n", 4, "must be one of lora"),
    ("blocks:\n  lora:\n    rank: [1]\n    learning_rate: 0\n", 4, "above 0"),
    ("blocks:\n  lora:\n    roles: all\n", 2, "rank is required"),
    ("blocks:\n  ia3:\n    size: 4\n", 3, "blocks.ia3.size is not a known key"),
    ("blocks:\n  ia3:\n    layers: {groups: 0}\n", 3, "groups must be a whole number above 0, but got 0"),
    ("blocks:\n  ia3:\n    layers: {groups: 2, shape: diamond}\n", 3, "shape must be one of uniform, increasing"),
    ("blocks:\n  ia3:\n    layers: {groups: 2, only: [2]}\n", 3, "counted from 0 to 1, each once, but got [2]"),
    ("blocks:\n  low:\n    kind: lorra\n    rank: 1\n", 3, "did you mean 'lora'"),
    ("blocks:\n  ia3:\n    kind: lora\n    rank: 1\n", 2, "must have a name of its own, such as lora_2, but got 'ia3'"),
    ("blocks:\n  my-lora:\n    kind: lora\n    rank: 1\n", 2, "made of letters, digits and _, but got 'my-lora'"),
    ("blocks:\n  serial:\n    size: 4\n", 2, "an entry with a name of its own says its technique, such as kind: lora"),
    ("blocks:\n  lora:\n    rank: 1\n    learning_rate: priors\n", 4, "must be prior or a number above 0"),
    ("blocks:\n  head:\n    kind: lora\n    rank: 1\n", 2, "must have a name of its own"),
    ("quantization: {per_layer: [none, nf4]}\nblocks: {}\n", 1, "per_layer is reserved"),
    (
        "blocks:\n  a: {kind: lora, rank: 1, learning_rate: 1e-3}\n  b: {kind: lora, rank: 1, learning_rate: prior}\n",
        3,
        "all entries of kind lora share one learning rate, but a has another",
    ),
    ("blocks:\n  prompt:\n    length: 4\n    layers: all\n", 4, "the model as a whole and has no layers"),
    ("quantization: [nf5]\nblocks: {}\n", 1, "did you mean 'nf4'"),
    ("blocks:\n  lora: {rank: 1}\nrequire: {any_of: [adapter]}\n", 3, "must be one of lora"),
    ("blocks:\n  lora: {rank: 1}\nrequire: {export: onnx}\n", 3, "must be peft"),
    ("blocks: {lora: {rank: [1, 2}}\n", 1, "expected"),
    ("bloks: {}\n", 1, "did you mean 'blocks'"),
]


@pytest.mark.parametrize(("text", "line", "message"), MISTAKES)
def test_a_mistake_in_a_file_gets_its_line(tmp_path, text: str, line: int, message: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(SpaceError, match=f"mine.yaml, line {line}: ") as caught:
        load_space(str(path))
    assert message in str(caught.value)


def test_an_illegal_option_on_a_model_gets_its_line(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "mine.yaml"
    path.write_text("blocks:\n  lora:\n    rank: [8, 9000]\n    roles: [[query], [mlp_gate]]\n")
    with pytest.raises(SpaceError, match=r"line 3: blocks.lora.rank: .*rank=9000.*hidden_size=384"):
        load_space(str(path)).check(MODEL)
    path.write_text("blocks:\n  lora:\n    rank: [8]\n    roles: [[query], [mlp_gate]]\n")
    with pytest.raises(SpaceError, match=r"line 4: blocks.lora.roles: .*mlp_gate"):
        load_space(str(path)).check(MODEL)
    path.write_text("blocks:\n  lora:\n    rank: [8]\n    layers: {last: {int: [1, 40]}}\n")
    with pytest.raises(SpaceError, match="last=40, n_layers=6"):
        load_space(str(path)).check(MODEL)


def test_a_technique_that_the_model_cannot_have_gets_its_line(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "mine.yaml"
    path.write_text("blocks:\n  lora: {rank: 1}\n  ia3:\n    use: [true, false]\n")
    summary = make_summary()
    fused = dataclasses.replace(
        summary,
        layers=tuple(
            dataclasses.replace(layer, roles={"qkv": layer.roles["query"], "mlp_down": layer.roles["mlp_down"]})
            for layer in summary.layers
        ),
    )
    load_space(str(path)).check(summary)
    with pytest.raises(SpaceError, match=r"line 4: blocks.ia3.use: .*key, value and mlp_down.*take ia3 out"):
        load_space(str(path)).check(fused)


def test_stock_only_means_that_peft_opens_it_not_that_it_merges() -> None:
    both = {"lora": {"rank": 2}, "ia3": {}}
    space = SearchSpace.from_dict({"blocks": both, "require": {"export": "peft"}})
    assert space.draw(RandomChooser(random.Random(0)), MODEL).violation == "require.export: peft"
    alone = SearchSpace.from_dict({"blocks": {"ia3": {}}, "require": {"export": "peft"}})
    assert not alone.draw(RandomChooser(random.Random(0)), MODEL).violation


def test_an_unknown_name_lists_the_shipped_ones() -> None:
    with pytest.raises(SpaceError, match=r"must be one of .*hybrid.*did you mean 'hybrid'"):
        load_space("hybird")
    with pytest.raises(SpaceError, match="file that exists"):
        load_space("spaces/none.yaml")


def test_a_prior_is_written_out_in_what_a_study_keeps() -> None:
    space = SearchSpace.from_dict(
        {
            "head": {"learning_rate": "prior"},
            "blocks": {"low": {"kind": "lora", "rank": 1, "learning_rate": "prior"}, "ia3": {"learning_rate": "prior"}},
        }
    )
    for kind, entry in [("head", space.to_dict()["head"]), ("lora", space.to_dict()["blocks"]["low"])]:
        low, high = entry["learning_rate"]["log"]
        assert low < default_learning_rate(kind) < high
    draw = space.sample(MODEL, 0)
    assert all(prior(kind).low <= rate <= prior(kind).high for kind, rate in draw.learning_rates.items())


def test_without_a_rate_a_block_has_its_default() -> None:
    draw = SearchSpace.from_dict({"blocks": {"ia3": {}}}).sample(MODEL, 0)
    assert draw.learning_rates == {"head": default_learning_rate("head"), "ia3": default_learning_rate("ia3")}


def test_numbers_and_words_are_yaml_1_2(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "mine.yaml"
    path.write_text("blocks:\n  lora: {rank: 1, learning_rate: {log: [1e-4, 1e-2]}}\n")
    draws = [load_space(str(path)).sample(MODEL, seed).learning_rates["lora"] for seed in range(20)]
    assert all(1e-4 <= rate <= 1e-2 for rate in draws)
    assert len(set(draws)) == 20


def test_random_draws_reach_every_option() -> None:
    space = SearchSpace.from_dict(SMALL["last"])
    lengths = {space.sample(MODEL, seed).design.blocks[0].length for seed in range(200)}
    assert lengths == {1, 2, 3, 4}
