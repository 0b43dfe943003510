"""The picture of a step's memory, drawn from a real explanation."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from autopeft.costs.model_costs import ModelCosts
from autopeft.costs.plot import N_MODULES, check_plot_path, draw_memory
from autopeft.costs.setting import Setting
from autopeft.errors import DesignError
from autopeft.estimation.explanation import Explanation
from autopeft.spec.design import Design
from autopeft.spec.units import format_bytes

LORA = Design.from_dict({"blocks": [{"lora": {"rank": 2, "roles": ["query"]}}]})


@pytest.fixture(scope="module")
def explanation(llama_config: str) -> Explanation:
    setting = Setting(sequence_length=16, batch_size=2, task="causal-lm")
    return ModelCosts(llama_config, task="causal-lm").at(setting).explain(LORA)


@pytest.fixture(scope="module")
def figure(explanation: Explanation) -> Figure:
    return draw_memory(explanation, "a title")


def test_the_peak_is_where_it_is_and_says_how_high(figure: Figure, explanation: Explanation):
    over = figure.axes[0]
    peak_bytes = max(explanation.training.peak_bytes, explanation.evaluation.peak_bytes)
    (mark,) = over.get_lines()[:1]
    assert [*mark.get_xdata(), *mark.get_ydata()] == [explanation.peak_at, peak_bytes]
    assert over.texts[0].get_text() == f"{format_bytes(peak_bytes)}, {explanation.peak_phase}"
    tops = [vertices.vertices[:, 1].max() for stack in over.collections for vertices in stack.get_paths()]
    assert max(tops) == peak_bytes


def test_bars_add_up_to_the_peak(figure: Figure, explanation: Explanation):
    bars = figure.axes[1].patches
    assert sum(bar.get_width() for bar in bars) == pytest.approx(sum(row[2] for row in explanation.by_module))
    names = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    assert len(names) <= N_MODULES + 1


def test_a_file_is_written_where_it_was_asked_for(figure: Figure, tmp_path: Path):
    target = check_plot_path(tmp_path / "memory.png")
    figure.savefig(target, dpi=40)
    assert target.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DesignError, match=r"must end in .png, .pdf, .svg, but got"):
        check_plot_path(tmp_path / "memory.txt")
