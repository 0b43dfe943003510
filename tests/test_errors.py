"""Errors: each fits on a screen whatever it repeats, keeps its rule and its way out, and survives pickling."""

import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft import errors
from autopeft.costs.setting import Setting
from autopeft.errors import MAX_MESSAGE, AutopeftError
from autopeft.spec.cost import Budget
from autopeft.spec.design import Design
from autopeft.spec.location import check_path
from autopeft.spec.messages import MAX_ECHO, cut, echo, listed, one_of, unknown_key
from autopeft.spec.objective import find_objective
from autopeft.spec.space import SearchSpace
from autopeft.spec.study import load_study, make_study

ALL = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, AutopeftError)]


@pytest.mark.parametrize("kind", ALL)
def test_a_long_message_keeps_its_beginning_and_its_end(kind: type[AutopeftError]) -> None:
    error = kind("the rule, but got " + "x" * 100_000 + "; the way out")
    message = str(error)
    assert len(message) <= MAX_MESSAGE
    assert message.startswith("the rule, but got x")
    assert message.endswith("x; the way out")
    assert "characters left out" in message
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy)) == (kind, message)
    assert str(kind(message)) == message, "an error that is raised again stays as it is"
    assert str(kind("short")) == "short"


LONG = ("x" * 20_000, "研" * 5_000, {f"key{i}": i for i in range(3_000)}, [f"name{i}" for i in range(3_000)], 10**3_000)
GOOD = {"model": "bert", "data": "reviews.csv"}

CHECKS: dict[str, Callable[[Any], Any]] = {
    "unknown key": lambda v: make_study({**GOOD, str(v)[:5_000]: 1}),
    "many unknown keys": lambda v: make_study({**GOOD, **{f"key{i}": v for i in range(300)}}),
    "model": lambda v: make_study({**GOOD, "model": v, "n_trials": -1}),
    "n_trials": lambda v: make_study({**GOOD, "n_trials": v if not isinstance(v, int) else -v}),
    "timeout": lambda v: make_study({**GOOD, "timeout": v}),
    "objectives": lambda v: make_study({**GOOD, "objectives": v if isinstance(v, list) else [str(v)[:5_000]]}),
    "study_name": lambda v: make_study({**GOOD, "study_name": str(v)[:5_000]}),
    "training": lambda v: make_study({**GOOD, "training": {"epochs": v, "batch": v}}),
    "executor": lambda v: make_study({**GOOD, "executor": v}),
    "yardstick": lambda v: make_study({**GOOD, "yardstick": {"blocks": v if isinstance(v, list) else [v]}}),
    "budget": lambda v: Budget({"peak_memory": v if not isinstance(v, int) else -v}),
    "budget key": lambda v: Budget({str(v)[:5_000]: 1}),
    "design": lambda v: Design.from_dict(v if isinstance(v, dict) else {"blocks": v}),
    "quantization": lambda v: Design.from_dict({"quantization": v, "blocks": []}),
    "rank": lambda v: Design.from_dict({"blocks": [{"lora": {"rank": v, "wrong": v}}]}),
    "space": lambda v: SearchSpace.load(str(v)[:5_000]),
    "space values": lambda v: SearchSpace.from_dict({"blocks": {"lora": {"rank": v, "layers": v}}}),
    "space blocks": lambda v: SearchSpace.from_dict({"blocks": v}),
    "objective": lambda v: find_objective(str(v)[:5_000]),
    "setting": lambda v: Setting(batch_size=str(v)[:5_000]),  # type: ignore[arg-type]
    "study file": lambda v: load_study(str(v)[:5_000]),
    "override": lambda v: load_study(__file__, [str(v)[:5_000]]),
    "path": lambda v: check_path(str(v)[:5_000]),
}


@pytest.mark.parametrize("value", LONG, ids=["text", "wide text", "mapping", "list", "number"])
@pytest.mark.parametrize("name", CHECKS)
def test_no_message_is_longer_than_a_screen(name: str, value: Any) -> None:
    if name == "space values" and isinstance(value, list):
        value = [*value, None]
    with pytest.raises(AutopeftError) as caught:
        CHECKS[name](value)
    message = str(caught.value)
    assert 10 < len(message) <= MAX_MESSAGE
    assert "\n" not in message


@given(st.text(max_size=400), st.integers(20, 200))
def test_a_cut_text_keeps_both_ends(text: str, n_characters: int) -> None:
    short = cut(text, n_characters)
    assert len(short) <= n_characters
    if len(text) <= n_characters:
        assert short == text
    else:
        start, end = short.split("...", 1) if "..." not in text else (short[:5], short[-5:])
        assert text.startswith(start)
        assert text.endswith(end)


def test_what_is_short_is_repeated_as_it_is() -> None:
    assert echo("8 apples") == "'8 apples'"
    assert len(echo("x" * 1000)) == MAX_ECHO
    assert echo(10**9_000) == "a very large int", "Python writes no whole number of so many digits"
    assert listed(["a", "b"]) == "a, b"
    assert listed(range(5_000)).endswith("18, 19, and 4,980 more")
    assert one_of(("a", "b"), "c") == "must be one of a, b, but got 'c'"
    assert unknown_key("budget.memory", ["peak_memory"]).startswith("budget.memory is not a known key; did you mean")
