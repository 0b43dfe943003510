"""The growth of the hypervolume as a plotly figure."""

from typing import Any

import plotly.graph_objects as go

from autopeft.results.drawing import FRONT_COLOR
from autopeft.spec.state import StudyState
from autopeft.spec.units import format_seconds
from autopeft.study.hypervolume import hypervolume_history


def hypervolume_chart(state: StudyState) -> Any | None:
    """Return the hypervolume over the designs that trained in full; None where no feasible one did.

    Its colours for text, grid and background are left to the page.
    """
    history = hypervolume_history(state)
    if not history:
        return None
    designs = {trial.number: trial.describe() for trial in state.trials}
    hover = [
        f"trial {point.trial}: {designs[point.trial]}<br>hypervolume {point.value:.4f}"
        + ("" if point.elapsed_seconds is None else f"<br>after {format_seconds(point.elapsed_seconds)}")
        for point in history
    ]
    line = go.Scatter(
        x=list(range(1, len(history) + 1)),
        y=[point.value for point in history],
        mode="lines+markers",
        line={"shape": "hv", "width": 1.5, "color": FRONT_COLOR},
        marker={"size": 5},
        text=hover,
        hovertemplate="%{text}<extra></extra>",
    )
    return go.Figure(
        line,
        layout={
            "template": "none",
            "xaxis": {"title": {"text": "designs trained in full, in order of completion"}, "zeroline": False},
            "yaxis": {"title": {"text": "hypervolume (share of the box)"}, "zeroline": False},
            "margin": {"l": 64, "r": 16, "t": 40, "b": 56},
            "hovermode": "closest",
        },
    )
