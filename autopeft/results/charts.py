"""The report's interactive figures, as plotly figures.

Their colours for text, grid and background are left to the page, which has a light and a dark form. Each point
carries its trial's number, so that the page can show the trial's card.
"""

from collections.abc import Sequence
from html import escape
from math import log10
from textwrap import wrap
from typing import Any

import plotly.graph_objects as go

from autopeft.results.comparison import Z_95
from autopeft.results.diagnostics import measured, throughput, timed, trained_flops
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
from autopeft.results.wording import format_score, marked_words, outcome_words, quality_title, reason_words
from autopeft.spec.cost import format_cost
from autopeft.spec.objective import COSTS, OBJECTIVES
from autopeft.spec.state import StudyState
from autopeft.spec.trial import Outcome, TrialRecord
from autopeft.spec.units import format_bytes
from autopeft.study.front import pareto_front

HOVER_WIDTH = 44
"""Characters of a line in a hover card: fits beside a finger on a phone."""


def front_chart(state: StudyState) -> Any:
    """Return every trial by first cost (log scale) and quality; unscored ones lie at the edge of the worse scores."""
    front = pareto_front(state.trials, state.objectives)
    on_front = {record.number for record in front}
    trials = drawn(state)
    with_score = scored(trials, state.metric)
    set_apart = {*on_front, *(trial.number for trial in (state.yardstick, *full(state)) if trial is not None)}
    rest = [trial for trial in with_score if trial.number not in set_apart]
    complete = [trial for trial in rest if trial.outcome is Outcome.COMPLETE]
    partial = [trial for trial in rest if trial.outcome is not Outcome.COMPLETE]
    unscored = without_score(state)
    figure = _figure(axis_title(state), quality_title(state.quality))
    edge = [_worse_edge(state)] * len(unscored)
    figure.add_trace(_points(state, unscored, "never scored", symbol="x-thin-open", y=edge))
    figure.add_trace(_points(state, partial, "stopped", symbol="circle-open"))
    figure.add_trace(_points(state, complete, "trained in full", symbol="circle"))
    line = _points(state, front, "front", symbol="circle", color=FRONT_COLOR, size=9)
    line.error_y = {
        "type": "data",
        "array": [Z_95 * record.standard_errors.get(state.metric, 0.0) for record in front],
        "thickness": 1,
        "width": 3,
    }
    if len(state.objectives) == 2:
        # With more objectives, what looks dominated here may be best in one that is not drawn.
        line.update(mode="lines+markers", line={"shape": "hv", "width": 1.5, "color": FRONT_COLOR})
    figure.add_trace(line)
    if (yardstick := state.yardstick) is not None:
        points = _points(state, [yardstick], "yardstick", symbol="diamond", color=YARDSTICK_COLOR, size=10)
        figure.add_trace(points)
    if tuned := full(state):
        figure.add_trace(_points(state, tuned, "full fine-tuning", symbol="square", color=FULL_COLOR, size=9))
    _add_references(figure, state)
    ticks = cost_ticks(state)
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=[format_cost(state.cost.name, tick) for tick in ticks])
    if is_wide(state):
        figure.update_yaxes(type="log", dtick="D2")
    return figure


def _worse_edge(state: StudyState) -> float:
    """Return a score a little worse than every other, where trials without one are drawn."""
    values = [trial.value(state.metric) for trial in scored(state.chains, state.metric)] or [0.0, 1.0]
    low, high = min(values), max(values)
    if is_wide(state):
        return high * 1.15
    margin = 0.06 * ((high - low) or 1.0)
    return low - margin if state.quality.direction == "maximize" else high + margin


def _add_references(figure: Any, state: StudyState) -> None:
    """Draw the budget as a vertical line and the base model's score as a horizontal one: it has no place on a log axis.

    Plotly wants the logarithm for an annotation on a logarithmic axis, and the value itself for a shape.
    """
    label = {"showarrow": False, "font": {"size": 12}}
    if (limit := state.limits.get(state.cost.name)) is not None:
        figure.add_vline(x=limit, line={"dash": "dot", "width": 1, "color": OTHER_COLOR})
        figure.add_annotation(x=log10(limit), y=1, yref="paper", text="budget", xanchor="right", yanchor="top", **label)
    if (base := state.base) is not None and base in scored([base], state.metric):
        score = base.value(state.metric)
        figure.add_hline(y=score, line={"dash": "dash", "width": 1, "color": OTHER_COLOR})
        text = f"base model, untrained: {format_score(base.scores, {}, state.metric)}"
        y = log10(score) if is_wide(state) else score
        figure.add_annotation(x=0, xref="paper", y=y, text=text, xanchor="left", yanchor="bottom", **label)


def memory_chart(state: StudyState) -> Any | None:
    """Return measured over predicted peak memory, with the line of equality; None where none was measured."""
    trials = measured(state)
    if not trials:
        return None
    mib = 2.0**20
    predicted = [trial.estimate.peak_memory / mib for trial in trials]
    found = [(trial.measured.peak_memory or 0) / mib for trial in trials]
    ends = [min(predicted + found), max(predicted + found)]
    figure = _figure("predicted peak memory, MiB", "measured, MiB")
    figure.add_trace(_reference_line(ends, ends, "equal"))
    points = _points(state, trials, "trials", symbol="circle", color=FRONT_COLOR)
    figure.add_trace(points.update(x=predicted, y=found))
    return figure


def time_chart(state: StudyState) -> Any | None:
    """Return measured seconds over predicted compute, with the line of the median speed; None where none was timed."""
    speed, trials = throughput(state), timed(state)
    if speed is None:
        return None
    flops = [trained_flops(state, trial) for trial in trials]
    figure = _figure("predicted training compute, TFLOP", "measured training, s")
    end = max(flops)
    figure.add_trace(_reference_line([0.0, end / 1e12], [0.0, end / speed.median], "median speed"))
    points = _points(state, trials, "trials", symbol="circle", color=FRONT_COLOR)
    seconds = [trial.measured.train_seconds for trial in trials]
    figure.add_trace(points.update(x=[value / 1e12 for value in flops], y=seconds))
    figure.update_xaxes(rangemode="tozero")
    figure.update_yaxes(rangemode="tozero")
    return figure


def rung_chart(state: StudyState) -> Any | None:
    """Return quality over the share of a full training, one line for each trial; None where no trial met a rung."""
    trials = [trial for trial in state.chains if any(state.metric in rung.scores for rung in trial.rungs)]
    if not trials:
        return None
    front = {record.number for record in pareto_front(state.trials, state.objectives)}
    figure = _figure("share of the full training", quality_title(state.quality))
    groups: dict[str, list[TrialRecord]] = {}
    for trial in trials:
        groups.setdefault("front" if trial.number in front else outcome_words(trial.outcome), []).append(trial)
    # The front is drawn last, on top of the others.
    for name in sorted(groups, key=lambda name: name == "front"):
        figure.add_trace(_curves(state, groups[name], name))
    figure.update_xaxes(tickformat=".0%", range=[0, 1.04])
    if is_wide(state):
        figure.update_yaxes(type="log", dtick="D2")
    return figure


def _curves(state: StudyState, trials: Sequence[TrialRecord], name: str) -> Any:
    """Return one trace of many curves: a gap, where x is None, ends each."""
    x: list[float | None] = []
    y: list[float | None] = []
    text: list[str] = []
    numbers: list[int] = []
    for trial in trials:
        points = [(rung.examples, rung.scores[state.metric]) for rung in trial.rungs if state.metric in rung.scores]
        if trial.outcome is Outcome.COMPLETE:
            points.append((trial.examples, trial.value(state.metric)))
        x += [*(examples / state.n_full_examples for examples, _ in points), None]
        y += [*(value for _, value in points), None]
        text += [_hover(state, trial)] * (len(points) + 1)
        numbers += [trial.number] * (len(points) + 1)
    on_front = name == "front"
    return go.Scatter(
        x=x,
        y=y,
        mode="lines+markers",
        name=name,
        line={"width": 1.8 if on_front else 1, "color": FRONT_COLOR if on_front else OTHER_COLOR},
        marker={"size": 5, "symbol": "circle" if on_front or name == "complete" else "x-thin-open"},
        opacity=1.0 if on_front else 0.6,
        text=text,
        customdata=numbers,
        hovertemplate="%{text}<extra></extra>",
    )


def _figure(x_title: str, y_title: str) -> Any:
    return go.Figure(
        layout={
            "template": "none",
            "xaxis": {"title": {"text": x_title, "font": {"size": 13}}, "zeroline": False},
            "yaxis": {"title": {"text": y_title, "font": {"size": 13}}, "zeroline": False},
            "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0, "font": {"size": 12}},
            "margin": {"l": 56, "r": 12, "t": 24, "b": 48},
            "hovermode": "closest",
            "hoverlabel": {"align": "left"},
        }
    )


def _reference_line(x: Sequence[float], y: Sequence[float], name: str) -> Any:
    line = {"width": 1, "dash": "dot", "color": OTHER_COLOR}
    return go.Scatter(x=list(x), y=list(y), mode="lines", name=name, line=line, hoverinfo="skip")


def _points(
    state: StudyState,
    trials: Sequence[TrialRecord],
    name: str,
    *,
    symbol: str,
    color: str = OTHER_COLOR,
    size: int = 7,
    y: Sequence[float] | None = None,
) -> Any:
    return go.Scatter(
        x=[trial.value(state.cost.name) for trial in trials],
        y=list(y) if y is not None else [trial.value(state.metric) for trial in trials],
        mode="markers",
        name=name,
        marker={"symbol": symbol, "color": color, "size": size, "line": {"width": 1, "color": color}},
        text=[_hover(state, trial) for trial in trials],
        customdata=[trial.number for trial in trials],
        hovertemplate="%{text}<extra></extra>",
        showlegend=bool(trials),
    )


def _hover(state: StudyState, trial: TrialRecord) -> str:
    """Return a trial's card; plotly reads some HTML in it, so that texts are escaped."""
    test = state.tests.get(trial.number)
    words = [escape(line) for line in wrap(f"{trial.number}: {marked_words(trial)}", HOVER_WIDTH)]
    lines = [
        *(f"<b>{line}</b>" for line in words),
        escape(outcome_words(trial.outcome)),
        f"{state.quality.label} {format_score(trial.scores, trial.standard_errors, state.metric)} on validation",
    ]
    if test is not None:
        lines.append(f"{state.quality.label} {format_score(test.scores, test.standard_errors, state.metric)} on test")
    lines += [f"{OBJECTIVES[name].label} {format_cost(name, trial.estimate.cost(name))}" for name in COSTS]
    if trial.measured.peak_memory is not None:
        lines.append(f"measured peak memory {format_bytes(trial.measured.peak_memory)}")
    if reason := reason_words(trial, state.limits):
        short = reason if len(reason) <= 2 * HOVER_WIDTH else reason[: 2 * HOVER_WIDTH - 1] + "…"
        lines += [escape(line) for line in wrap(short, HOVER_WIDTH)]
    return "<br>".join(lines)
