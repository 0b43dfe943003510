"""Designs: one form for one design, and errors that say what is wrong."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.errors import DesignError
from autopeft.spec.block import block_class, block_kinds, register
from autopeft.spec.design import QUANTIZATIONS, Design
from autopeft.spec.model import ModelSummary
from tests.conftest import make_summary

layers = st.one_of(st.just("all"), st.lists(st.integers(0, 5), min_size=1, max_size=6))
blocks = st.one_of(
    st.fixed_dictionaries({"lora": st.fixed_dictionaries({"rank": st.integers(1, 64), "layers": layers})}),
    st.fixed_dictionaries(
        {
            "adapter": st.fixed_dictionaries(
                {"size": st.integers(1, 64), "mode": st.sampled_from(["serial", "parallel"])}
            )
        }
    ),
    st.fixed_dictionaries({"prefix": st.fixed_dictionaries({"length": st.integers(1, 32), "layers": layers})}),
    st.fixed_dictionaries({"prompt": st.fixed_dictionaries({"length": st.integers(1, 32)})}),
    st.fixed_dictionaries({"ia3": st.fixed_dictionaries({"layers": layers})}),
)
designs = st.builds(
    lambda blocks, quantization: Design.from_dict({"blocks": blocks, "quantization": quantization}),
    st.lists(blocks, max_size=4),
    st.sampled_from(QUANTIZATIONS),
)


@given(designs)
def test_json_round_trip(design: Design) -> None:
    again = Design.from_dict(json.loads(json.dumps(design.to_dict())))
    assert again == design
    assert again.key == design.key
    assert hash(again) == hash(design)


@given(designs)
def test_resolving_twice_is_resolving_once(design: Design) -> None:
    model = make_summary()
    once = design.resolve(model)
    assert once.resolve(model) == once


def test_the_order_of_blocks_and_layers_does_not_matter() -> None:
    a = Design.from_dict({"blocks": [{"lora": {"rank": 4, "layers": [5, 1]}}, {"prefix": {"length": 3}}]})
    b = Design.from_dict({"blocks": [{"prefix": {"length": 3}}, {"lora": {"rank": 4, "layers": [1, 5]}}]})
    assert a == b
    assert a.key == b.key


def test_resolve_writes_one_form(summary: ModelSummary) -> None:
    listed = {"rank": 4, "layers": [0, 1, 2, 3, 4, 5], "roles": list(summary.roles)}
    split = [{"lora": {"rank": 4, "layers": [0, 1, 2]}}, {"lora": {"rank": 4, "layers": [3, 4, 5]}}]
    short = Design.from_dict({"blocks": [{"lora": {"rank": 4}}]})
    for blocks in ([{"lora": listed}], split):
        assert Design.from_dict({"blocks": blocks}).resolve(summary) == short.resolve(summary)
    assert Design.from_dict({"blocks": [{"lora": {"rank": 4, "layers": []}}]}).resolve(summary) == Design()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"blocks": [{"lroa": {}}]}, "did you mean 'lora'"),
        ({"blocks": [{"lora": {"rnk": 4}}]}, "lora.rnk is not a known key; did you mean 'rank'"),
        ({"blocks": [{"lora": {"rank": 0}}]}, "lora.rank: .*greater than or equal to 1, but got 0"),
        ({"blocks": [{"lora": {}}]}, "lora.rank is required"),
        ({"blocks": [{"lora": {"rank": 4, "roles": ["quary"]}}]}, "did you mean 'query'"),
        ({"blocks": [{"adapter": {"size": 4, "mode": "serail"}}]}, "serial"),
        ({"blocks": [{"lora": 8}]}, "must be an object, but got 8"),
        ({"blocks": {"lora": {"rank": 4}}}, "must be a list"),
        ({"blocks": [{"lora": {"rank": 4}, "prefix": {"length": 2}}]}, "one kind each"),
        ({"block": []}, "did you mean 'blocks'"),
        ({"quantization": "nf3"}, "did you mean 'nf4'"),
        ([], "must be an object"),
    ],
)
def test_a_mistake_is_named(values: object, message: str) -> None:
    with pytest.raises(DesignError, match=message):
        Design.from_dict(values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"lora": {"rank": 4, "layers": [6]}}, "layer=6, n_layers=6"),
        ({"lora": {"rank": 9000}}, "rank=9000, hidden_size=384"),
        ({"lora": {"rank": 4, "roles": ["mlp_gate"]}}, "mlp_gate"),
        ({"prefix": {"length": 600}}, "600"),
    ],
)
def test_what_the_model_does_not_allow_is_refused(
    block: dict[str, object], message: str, summary: ModelSummary
) -> None:
    with pytest.raises(DesignError, match=message):
        Design.from_dict({"blocks": [block]}).check(summary)


def test_designs_are_described_in_words() -> None:
    design = Design.from_dict(
        {
            "quantization": "nf4",
            "blocks": [
                {"lora": {"rank": 8, "roles": ["query", "value"], "layers": [3, 4, 5]}},
                {"prefix": {"length": 16}},
            ],
        }
    )
    text = design.describe()
    assert "r=8 on query, value in layers 3-5" in text
    assert "nf4 base" in text
    for layers, words in (([5], "in layer 5"), ([0, 1], "in layers 0-1"), ([0, 2], "in layers 0, 2")):
        made = Design.from_dict({"blocks": [{"prefix": {"length": 4, "layers": layers}}]})
        assert made.describe() == f"prefix of 4 {words}"
    assert Design().describe() == "head only"


def test_serving_tells_what_can_load_a_design(summary: ModelSummary) -> None:
    def serving(blocks: list[dict[str, object]], quantization: str = "none") -> str:
        return Design.from_dict({"blocks": blocks, "quantization": quantization}).serving(summary)

    assert serving([{"lora": {"rank": 4}}]) == "merge"
    assert serving([{"lora": {"rank": 4}}], "nf4") == "peft"
    assert serving([{"prefix": {"length": 4}}]) == "peft"
    assert serving([{"prefix": {"length": 4, "layers": [5]}}]) == "autopeft"
    assert serving([{"lora": {"rank": 4}}, {"prefix": {"length": 4}}]) == "autopeft"


def test_a_kind_is_one_technique() -> None:
    lora = block_class("lora")
    assert register(lora) is lora
    assert {"lora", "adapter", "ia3", "prefix", "prompt"} <= set(block_kinds())
    with pytest.raises(DesignError, match="must be unique"):
        register(type("Other", (lora,), {}))
