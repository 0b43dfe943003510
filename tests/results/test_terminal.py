from io import StringIO

import pytest
from rich.console import Console

from autopeft.results.terminal import TrialTable, front_table, leaderboard_table
from autopeft.spec.state import StudyState
from autopeft.spec.trial import Outcome
from tests.results.generated import Builder, language_model, lora


def render(table: TrialTable, width: int, *, terminal: bool = True) -> str:
    out = StringIO()
    Console(file=out, width=width, force_terminal=terminal, color_system="truecolor" if terminal else None).print(table)
    return out.getvalue()


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
@pytest.mark.parametrize("make", [front_table, leaderboard_table])
def test_lines_fit_the_width_and_nothing_is_cut(state: StudyState, width: int, make: type) -> None:
    text = render(make(state), width, terminal=False)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text


def test_at_80_columns_the_front_shows_scores_test_and_parameters(state: StudyState) -> None:
    lines = render(front_table(state), 80, terminal=False).splitlines()
    assert lines[1].split() == ["trial", "accuracy", "test", "params", "design"]
    assert "18  0.822 ± 0.016" in "\n".join(lines)
    assert "299k" in "\n".join(lines)


def test_a_wide_terminal_shows_memory_and_serving_too(state: StudyState) -> None:
    text = render(front_table(state), 180, terminal=False)
    assert "400.0 / 406.3 MiB" in text
    assert "autopeft only" in text
    assert "parallel adapter 64 beside MLP in layers 3-5" in text


def test_the_leaderboard_tells_outcomes_apart_and_gives_errors(state: StudyState) -> None:
    text = render(leaderboard_table(state), 120, terminal=False)
    for word in ("complete", "stopped 25%", "infeasible", "failed", "out of memory", "interrupted", "yardstick"):
        assert word in text
    assert "FloatingPointError: the loss is not finite" in " ".join(text.split())
    starred = [line for line in text.splitlines() if " * " in line]
    assert len(starred) == 7


def test_a_pipe_gets_plain_text(state: StudyState) -> None:
    plain, drawn = render(leaderboard_table(state), 100, terminal=False), render(leaderboard_table(state), 100)
    assert "\x1b" not in plain
    assert "─" not in plain
    assert "\x1b" in drawn
    assert "─" in drawn


def test_markup_in_a_reason_is_text(build: Builder) -> None:
    build.add(lora(1), params=1000, outcome=Outcome.FAILED, reason="KeyError: [bold]x[/nothing]")
    assert "[bold]x[/nothing]" in render(leaderboard_table(build.state()), 120)


def test_an_empty_front_says_why(build: Builder) -> None:
    build.add(lora(1), params=1000, outcome=Outcome.FAILED, reason="KeyError: x")
    assert "KeyError: x" in render(front_table(build.state()), 80)


def test_baselines_are_marked_and_perplexity_reads_right(build: Builder) -> None:
    state = language_model(build)
    text = render(leaderboard_table(state), 200, terminal=False)
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    rows = {line.split()[0]: line for line in lines if line.split()[0].isdigit()}
    assert rows["0"].endswith("LoRA r=8 on query, value (yardstick)")
    assert rows["1"].endswith("head only (baseline)")
    assert rows["22"].endswith("no adapter, untrained (base model)")
    assert "*" not in rows["22"]
    assert "mergeable" not in rows["22"]
    assert "23.68 ± 0.40" in rows["18"]
    assert "perplexity (lower is better) on validation and test" in text
    complete = [line for line in lines if " complete " in line]
    assert complete[0] == rows["18"]  # the lowest perplexity comes first
    assert "no adapter" not in render(front_table(state), 200, terminal=False)
