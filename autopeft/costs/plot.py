"""The memory of a step as a picture: over the step, and at its peak by module and kind."""

from collections import defaultdict
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MultipleLocator

from autopeft.costs.explanation import Explanation
from autopeft.costs.tracker import CATEGORIES, Category
from autopeft.errors import DesignError
from autopeft.spec.messages import echo
from autopeft.spec.units import format_bytes

N_MODULES = 12
"""Modules that have a bar of their own; the rest are one."""
NARROW = 0.05
"""Share of the step below which a phase is not named."""
# Okabe and Ito's colours: told apart by people with any kind of colour vision.
COLORS: dict[Category, str] = {
    "base": "#8a9099",
    "trainable": "#d55e00",
    "gradients": "#cc79a7",
    "optimizer": "#e69f00",
    "activations": "#0072b2",
    "scratch": "#56b4e9",
}
FORMATS = (".png", ".pdf", ".svg")


def check_plot_path(path: str | Path) -> Path:
    """Return where a picture can be written.

    Raises:
        DesignError: The ending is of no picture, or the folder is not there.
    """
    target = Path(path)
    if target.suffix.lower() not in FORMATS:
        raise DesignError(f"a plot must end in {', '.join(FORMATS)}, but got {echo(str(path))}")
    if not target.parent.is_dir():
        raise DesignError(f"a plot needs a folder that is there, but got {echo(str(path))}; make {target.parent} first")
    return target


def draw_memory(explanation: Explanation, title: str) -> Figure:
    """Draw live bytes by category over a training step and what comes after it, and what is alive at the peak.

    The horizontal axis counts changes of memory, not time.
    """
    figure = Figure(figsize=(11, 5), layout="constrained")
    over, at_peak = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_timeline(over, explanation)
    _draw_modules(at_peak, explanation)
    figure.suptitle(title, fontsize=10)
    return figure


def _draw_timeline(axes: Axes, explanation: Explanation) -> None:
    points = [by_category for _, by_category in explanation.timeline]
    shown = [category for category in CATEGORIES if any(point.get(category, 0) for point in points)]
    axes.stackplot(
        range(len(points)),
        *([point.get(category, 0) for point in points] for category in shown),
        labels=shown,
        colors=[COLORS[category] for category in shown],
        step="post",
    )
    peak_bytes = explanation.peak_bytes
    words = f"{format_bytes(peak_bytes)}, {explanation.peak_phase}"
    axes.plot([explanation.peak_at], [peak_bytes], "v", color="black", markersize=6)
    right = explanation.peak_at > len(points) / 2
    axes.annotate(
        words,
        (explanation.peak_at, peak_bytes),
        textcoords="offset points",
        xytext=(-6 if right else 6, 6),
        ha="right" if right else "left",
    )
    phases = [phase for phase, _ in explanation.timeline]
    starts = [index for index, phase in enumerate(phases) if index == 0 or phases[index - 1] != phase]
    for start in starts[1:]:
        axes.axvline(start, color="#5b6068", linewidth=0.6, linestyle=":")
    ends = [*starts[1:], len(phases)]
    # a name needs room: the optimizer's phase is often a point
    named = [start for start, end in zip(starts, ends, strict=True) if end - start > NARROW * len(phases)]
    axes.set_xticks(named, [phases[start] for start in named], ha="left", fontsize=8)
    axes.set_xlim(0, max(1, len(points) - 1))
    axes.set_ylim(0, 1.12 * peak_bytes)
    axes.set_ylabel("live memory")
    _in_bytes(axes.yaxis, peak_bytes)
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=len(shown))
    axes.spines[["top", "right"]].set_visible(False)


def _draw_modules(axes: Axes, explanation: Explanation) -> None:
    sizes: defaultdict[str, dict[Category, int]] = defaultdict(dict)
    for module, category, n_bytes in explanation.by_module:
        sizes[module][category] = sizes[module].get(category, 0) + n_bytes
    ranked = sorted(sizes, key=lambda module: -sum(sizes[module].values()))
    for module in ranked[N_MODULES:]:
        for category, n_bytes in sizes[module].items():
            sizes["others"][category] = sizes["others"].get(category, 0) + n_bytes
    names = [*ranked[:N_MODULES], *(["others"] if len(ranked) > N_MODULES else [])]
    ends = [0] * len(names)
    for category in CATEGORIES:
        widths = [sizes[name].get(category, 0) for name in names]
        axes.barh(names, widths, left=ends, color=COLORS[category])
        ends = [end + width for end, width in zip(ends, widths, strict=True)]
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=8)
    axes.tick_params(axis="x", labelsize=8, labelrotation=30)
    _in_bytes(axes.xaxis, max(ends))
    axes.set_title("at the peak, by module", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def _in_bytes(axis: Axis, highest: float) -> None:
    """Put ticks at multiples of a power of two, four to eight of them, in readable units."""
    axis.set_major_locator(MultipleLocator(2.0 ** (max(1, int(highest)).bit_length() - 3)))
    axis.set_major_formatter(FuncFormatter(lambda n_bytes, _: format_bytes(n_bytes)))
