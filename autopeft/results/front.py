"""The front of a study, and how it is explained where it is empty."""

from collections.abc import Sequence
from html import escape
from typing import overload

import pandas as pd

from autopeft.results.leaderboard import make_leaderboard
from autopeft.results.wording import format_score, marked_words, outcomes_words
from autopeft.spec.cost import format_cost
from autopeft.spec.state import StudyState
from autopeft.spec.trial import Outcome, TrialRecord
from autopeft.study.front import pareto_front


class Front(Sequence[TrialRecord]):
    """The feasible, fully trained designs that nothing else beats in every objective, cheapest first."""

    def __init__(self, state: StudyState) -> None:
        self._state = state
        self._records = pareto_front(state.trials, state.objectives)

    @overload
    def __getitem__(self, index: int) -> TrialRecord: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[TrialRecord, ...]: ...
    def __getitem__(self, index: int | slice) -> TrialRecord | tuple[TrialRecord, ...]:
        """Return the design at a position, counted from the cheapest."""
        return self._records[index]

    def __len__(self) -> int:
        """Return the number of designs."""
        return len(self._records)

    def to_frame(self) -> pd.DataFrame:
        """Return the front's rows of the leaderboard, cheapest first."""
        rows = make_leaderboard(self._state).set_index("number", drop=False)
        return rows.loc[[record.number for record in self._records]].reset_index(drop=True)

    def __repr__(self) -> str:
        """Return one line for each design: number, quality, cost and words."""
        if not self._records:
            return f"Front: {why_empty(self._state)}"
        metric, cost = self._state.metric, self._state.cost.name
        lines = [
            f"  {record.number:>5}  {format_score(record.scores, record.standard_errors, metric):>15}  "
            f"{format_cost(cost, record.value(cost)):>10}  {marked_words(record)}"
            for record in self._records
        ]
        return "\n".join([f"Front of {len(self)} (trial, {metric}, {cost}, design)", *lines])

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the front as a table, and its picture."""
        from autopeft.results.notebook import picture_html, table_html

        if not self._records:
            return f"<p>No front: {escape(why_empty(self._state))}</p>"
        return f"<div>{table_html(self._state, self._records)}\n{picture_html(self._state)}</div>"


def why_empty(state: StudyState) -> str:
    """Say why a study has no front: how its trials ended, and the first real error."""
    ends = [words] if (words := outcomes_words(state.outcomes)) else []
    refused = sum(state.n_refused.values())
    ends += [f"{refused} refused before training"] if refused else []
    message = f"no design trained in full within the budget ({', '.join(ends) or 'no trial was started'})"
    errors = [t for t in state.chains if t.outcome in (Outcome.FAILED, Outcome.OUT_OF_MEMORY) and t.reason]
    return f"{message}; the first error, of trial {errors[0].number}: {errors[0].reason}" if errors else message
