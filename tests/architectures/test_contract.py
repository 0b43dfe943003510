"""A default search on every architecture works, or is refused in one line before anything trains."""

from pathlib import Path

import pytest

from autopeft.errors import AutopeftError
from tests.architectures import page, tiny
from tests.architectures.contract import ask, search

FAST = {
    "text-classification": ("bert", "deberta-v2", "modernbert", "gpt2", "t5", "mixtral"),
    "causal-lm": ("gpt_neox", "phi3", "qwen3_moe", "deepseek_v3", "jamba", "mamba"),
}
"""One architecture of each kind, tried on every run of the tests."""


def _pairs() -> list[object]:
    return [
        pytest.param(task, kind, id=f"{task}/{kind}", marks=tiny.marks(task, kind, FAST[task]))
        for task in tiny.TASKS
        for kind in tiny.architectures(task)
        if kind not in tiny.NOT_BUILT
    ]


@pytest.mark.filterwarnings("ignore")  # of transformers, about tiny models
@pytest.mark.parametrize(("task", "model_type"), _pairs())
def test_a_default_search_works_or_is_refused_in_one_line(task: str, model_type: str, tmp_path: Path) -> None:
    answer = ask(task, model_type, tmp_path / "configuration")
    assert "\n" not in answer.refusal
    refusal, designs = "", []
    try:
        designs = search(task, model_type, tmp_path)
    except AutopeftError as error:
        refusal = str(error)
    if not refusal:
        assert not answer.refusal
        assert len(designs) >= 2
        return
    assert answer.refusal or model_type in tiny.REFUSED_LATER[task], refusal
    assert "\n" not in refusal
    assert not list(tmp_path.glob("runs/*/adapters/*")), "refused before training"


def test_the_most_used_are_known() -> None:
    for task, kinds in tiny.MOST_USED.items():
        assert {*kinds, *FAST[task]} <= set(tiny.architectures(task)) - set(tiny.NOT_BUILT)


def test_the_page_lists_what_transformers_builds() -> None:
    committed = page.PATH.read_text(encoding="utf-8")
    assert "fails:" not in committed
    assert page.listed(committed) == {task: set(tiny.architectures(task)) for task in tiny.TASKS}
