"""How a result shows itself in a notebook: a table of the front and its picture, without scripts.

A static table and a PNG show wherever notebooks are shown (Jupyter, VS Code, a notebook printed or mailed); an
interactive figure needs its library in each of these places, so that it comes only when it is asked for.
"""

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from io import BytesIO

from autopeft.results.plots import draw_front
from autopeft.results.wording import MISSING, format_score, format_share, marked_words, serving_words
from autopeft.spec.cost import format_cost
from autopeft.spec.objective import OBJECTIVES
from autopeft.spec.state import StudyState
from autopeft.spec.trial import TrialRecord
from autopeft.study.front import pareto_front

PICTURE_DPI = 100


def result_html(state: StudyState, headline: str) -> str:
    """Return a sentence, the front as a table with its references, and the picture."""
    front = pareto_front(state.trials, state.objectives)
    references = [trial for trial in (state.yardstick, state.base) if trial is not None and trial not in front]
    parts = [f"<p><b>{escape(state.spec.study_name)}</b>: {escape(headline)}</p>"]
    if front:
        parts.append(table_html(state, [*front, *references]))
    if state.trials:
        parts.append(picture_html(state))
    return "<div>" + "\n".join(parts) + "</div>"


def table_html(state: StudyState, trials: Sequence[TrialRecord]) -> str:
    """Return trials as a table, the columns that a choice is made by."""
    costs = [objective.name for objective in state.objectives if objective.kind == "cost"]
    label = state.quality.label
    heads = [
        "trial",
        "design",
        f"{label}, validation",
        f"{label}, test",
        *(OBJECTIVES[n].label for n in costs),
        "serving",
    ]
    rows = [_cells(state, trial, costs) for trial in trials]
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<table class="dataframe"><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>'


def picture_html(state: StudyState) -> str:
    """Return the picture of the front, embedded."""
    picture = BytesIO()
    draw_front(state).savefig(picture, format="png", dpi=PICTURE_DPI)
    encoded = b64encode(picture.getvalue()).decode("ascii")
    what = f"{state.quality.label} of every trial over its {state.cost.label}"
    return f'<img alt="{escape(what)}" style="max-width: 100%" src="data:image/png;base64,{encoded}">'


def _cells(state: StudyState, trial: TrialRecord, costs: Sequence[str]) -> list[str]:
    test = state.tests.get(trial.number)
    texts = [
        format_score(trial.scores, trial.standard_errors, state.metric),
        format_score(test.scores, test.standard_errors, state.metric) if test is not None else MISSING,
        *(_cost(state, trial, name) for name in costs),
    ]
    return [
        f"<td>{trial.number}</td>",
        f'<td style="text-align: left">{escape(marked_words(trial))}</td>',
        *(f"<td>{escape(text)}</td>" for text in texts),
        f'<td style="text-align: left">{escape(serving_words(trial))}</td>',
    ]


def _cost(state: StudyState, trial: TrialRecord, name: str) -> str:
    text = format_cost(name, trial.estimate.cost(name))
    return f"{text} ({format_share(trial, state.model.n_parameters)})" if name == "trainable_params" else text
