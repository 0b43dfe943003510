"""What designs scored on the test split: facts of the study, one for each design."""

from autopeft.spec.state import TestScore
from autopeft.spec.trial import SegmentResult, finite
from autopeft.study.store import StudyStore

_FACT = "tests/"
"""Before the number of a design, the name of the fact that has its scores."""


def read_scores(store: StudyStore) -> dict[int, TestScore]:
    """Return what designs have scored on the test split, by trial; each score is a fact of the study."""
    # Older records have one fact for all, or one for each driver.
    by_number = {number: scores for part in store.parts("tests") for number, scores in part.items()}
    by_number |= {name.removeprefix(_FACT): scores for name, scores in store.facts(_FACT).items()}
    return {int(number): TestScore(**scores) for number, scores in by_number.items()}


def write_score(store: StudyStore, result: SegmentResult) -> None:
    """Write down what a design has scored."""
    scores = {"scores": finite(result.scores), "standard_errors": finite(result.standard_errors)}
    store.set_fact(f"{_FACT}{result.trial}", scores)
