"""The front as a picture, drawn with matplotlib without a display."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator, ScalarFormatter

from autopeft.results.comparison import Z_95
from autopeft.results.drawing import (
    FRONT_COLOR,
    FULL_COLOR,
    OTHER_COLOR,
    YARDSTICK_COLOR,
    axis_title,
    cost_ticks,
    drawn,
    full,
    is_wide,
    scored,
    without_score,
)
from autopeft.results.wording import quality_title
from autopeft.spec.cost import format_cost
from autopeft.spec.state import StudyState
from autopeft.spec.trial import Outcome, TrialRecord
from autopeft.study.front import pareto_front


def draw_front(state: StudyState) -> Figure:
    """Draw every trial by its first cost (log scale) and quality; the front with its 95 % intervals.

    Trials that were never scored are ticks on the cost axis. With more than two objectives the front is
    not joined by a line: what looks dominated here may be best in an objective that is not drawn.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    front = pareto_front(state.trials, state.objectives)
    on_front = {record.number for record in front}
    set_apart = {*on_front, *(trial.number for trial in (state.yardstick, *full(state)) if trial is not None)}
    rest = [trial for trial in drawn(state) if trial.number not in set_apart]
    complete = [trial for trial in scored(rest, state.metric) if trial.outcome is Outcome.COMPLETE]
    partial = [trial for trial in scored(rest, state.metric) if trial.outcome is not Outcome.COMPLETE]
    _scatter(axes, state, complete, color=OTHER_COLOR, label="trained in full")
    _scatter(axes, state, partial, color="none", edgecolors=OTHER_COLOR, label="stopped, last score")
    if unscored := without_score(state):
        costs = [trial.value(state.cost.name) for trial in unscored]
        axes.plot(
            costs,
            [0.015] * len(costs),
            "|",
            transform=axes.get_xaxis_transform(),
            color=OTHER_COLOR,
            label="never scored",
        )
    _draw_line(axes, state, front)
    if (yardstick := state.yardstick) is not None:
        _scatter(axes, state, [yardstick], color=YARDSTICK_COLOR, marker="D", s=45, label="yardstick", zorder=4)
    style = {"color": FULL_COLOR, "marker": "s", "s": 38, "label": "full fine-tuning", "zorder": 4}
    _scatter(axes, state, full(state), **style)
    if (limit := state.limits.get(state.cost.name)) is not None:
        axes.axvline(limit, color=OTHER_COLOR, linestyle=":", linewidth=1, label="budget")
    if (base := state.base) is not None and base in scored([base], state.metric):
        axes.axhline(
            base.value(state.metric), color=OTHER_COLOR, linestyle="--", linewidth=1, label="base model, untrained"
        )
    _dress(axes, state)
    return figure


def _scatter(axes: Axes, state: StudyState, trials: Sequence[TrialRecord], **style: object) -> None:
    if trials:
        points = [(trial.value(state.cost.name), trial.value(state.metric)) for trial in trials]
        axes.scatter(*zip(*points, strict=True), **{"s": 22, "zorder": 2, **style})  # type: ignore[arg-type]


def _draw_line(axes: Axes, state: StudyState, front: Sequence[TrialRecord]) -> None:
    if not front:
        return
    costs = [record.value(state.cost.name) for record in front]
    values = [record.value(state.metric) for record in front]
    errors = [Z_95 * record.standard_errors.get(state.metric, 0.0) for record in front]
    axes.errorbar(
        costs,
        values,
        yerr=errors,
        fmt="o",
        color=FRONT_COLOR,
        markersize=6,
        elinewidth=0.8,
        label="front, 95 % interval",
        zorder=3,
    )
    if len(state.objectives) == 2:
        axes.step(costs, values, where="post", color=FRONT_COLOR, linewidth=1.2, zorder=3)


def _dress(axes: Axes, state: StudyState) -> None:
    """Label the axes, and take off whatever says nothing."""
    axes.set_xscale("log")
    if is_wide(state):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(ScalarFormatter())
    low, high = axes.get_xlim()
    ticks = [tick for tick in cost_ticks(state) if low <= tick <= high]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter([format_cost(state.cost.name, tick) for tick in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(axis_title(state))
    axes.set_ylabel(quality_title(state.quality))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9, loc="best")
