from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from autopeft.results.result import SearchResult
from autopeft.spec.state import StudyState
from autopeft.spec.trial import Outcome
from tests.results.generated import HEAD, Builder, fill, lora


@pytest.fixture
def build(tmp_path: Path) -> Builder:
    """An empty study."""
    return Builder(folder=tmp_path / "reviews")


@pytest.fixture(scope="session")
def state(tmp_path_factory: pytest.TempPathFactory) -> StudyState:
    """A study of twenty-two trials; shared, so not to be written to."""
    return fill(Builder(folder=tmp_path_factory.mktemp("runs") / "reviews")).state()


@pytest.fixture
def result(state: StudyState) -> SearchResult:
    """The result of the shared study."""
    return SearchResult(state)


@pytest.fixture
def random_result(tmp_path: Path) -> Callable[[int], SearchResult]:
    """Make results of 25 random trials, many of them tied or dominated."""

    def make(seed: int) -> SearchResult:
        builder = Builder(folder=tmp_path / f"random-{seed}", rng=np.random.default_rng(seed))
        rng = np.random.default_rng(seed + 1000)
        for _ in range(25):
            rank, memory = int(rng.integers(1, 12)), float(rng.integers(20, 70) * 10)
            outcome = Outcome.COMPLETE if rng.random() < 0.8 else Outcome.STOPPED
            skill = round(0.70 + 0.008 * rank + 0.02 * rng.normal(), 2)
            builder.add(lora(rank), params=HEAD + 9216 * rank, skill=skill, memory_mib=memory, outcome=outcome)
        builder.tests.clear()
        return SearchResult(builder.state())

    return make
