"""The picture of a step's memory, drawn from a real explanation."""

from collections import Counter
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from autopeft.costs.estimator import Estimator
from autopeft.costs.explanation import Explanation
from autopeft.costs.model_costs import ModelCosts
from autopeft.costs.plot import N_MODULES, check_plot_path, draw_memory
from autopeft.costs.setting import Setting
from autopeft.errors import DesignError
from autopeft.spec.cost import Estimate, Workload
from autopeft.spec.design import Design
from autopeft.spec.units import format_bytes

LORA = Design.from_dict({"blocks": [{"lora": {"rank": 2, "roles": ["query"]}}]})


@pytest.fixture(scope="module")
def estimator(llama_config: str) -> Estimator:
    setting = Setting(sequence_length=16, batch_size=2, task="causal-lm")
    return ModelCosts(llama_config, task="causal-lm").at(setting)


@pytest.fixture(scope="module")
def explanation(estimator: Estimator) -> Explanation:
    return estimator.explain(LORA)


@pytest.fixture(scope="module")
def estimate(estimator: Estimator) -> Estimate:
    return estimator(LORA)


@pytest.fixture(scope="module")
def figure(explanation: Explanation) -> Figure:
    return draw_memory(explanation, "a title")


def test_the_peak_is_where_it_is_and_says_how_high(figure: Figure, explanation: Explanation, estimate: Estimate):
    over = figure.axes[0]
    peak_bytes = estimate.peak_memory
    (mark,) = over.get_lines()[:1]
    assert [*mark.get_xdata(), *mark.get_ydata()] == [explanation.peak_at, peak_bytes]
    assert over.texts[0].get_text() == f"{format_bytes(peak_bytes)}, {explanation.peak_phase}"
    tops = [vertices.vertices[:, 1].max() for stack in over.collections for vertices in stack.get_paths()]
    assert max(tops) == peak_bytes


def test_bars_add_up_to_the_peak(figure: Figure, explanation: Explanation, estimate: Estimate):
    bars = figure.axes[1].patches
    assert sum(bar.get_width() for bar in bars) == estimate.peak_memory
    names = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    assert len(names) <= N_MODULES + 1
    assert explanation.peak_phase in ("forward", "backward")
    by_category: Counter[str] = Counter()
    for _, category, n_bytes in explanation.by_module:
        by_category[category] += n_bytes
    assert by_category == {category: n_bytes for category, n_bytes in estimate.at_peak.items() if n_bytes}


def test_modules_are_named_by_role_with_all_layers_as_one(explanation: Explanation):
    modules = {module for module, _, _ in explanation.by_module}
    assert {"layers.*.query", "layers.*.mlp_up"} <= modules
    assert not any(part.isdigit() for module in modules for part in module.split("."))


def test_where_writing_needs_most_the_picture_shows_it(estimator: Estimator):
    """With nothing that trains, and the shortest inputs, the cache of what is written is what is left."""
    alone = estimator.resized(Workload.uniform(batch_size=1, n_tokens=2))
    explanation = alone.explain(Design())
    assert explanation.peak_phase == "writing"
    assert explanation.peak_bytes == alone(Design()).peak_memory
    assert [*dict.fromkeys(phase for phase, _ in explanation.timeline)] == ["evaluation", "writing"]


def test_a_file_is_written_where_it_was_asked_for(figure: Figure, tmp_path: Path):
    target = check_plot_path(tmp_path / "memory.png")
    figure.savefig(target, dpi=40)
    assert target.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DesignError, match=r"must end in .png, .pdf, .svg, but got"):
        check_plot_path(tmp_path / "memory.txt")
