"""Dominance against brute force."""

from hypothesis import given
from hypothesis import strategies as st

from autopeft.study.front import non_dominated

points = st.integers(1, 3).flatmap(
    lambda n: st.lists(st.tuples(*[st.integers(0, 5)] * n), max_size=30)  # few values: many ties and duplicates
)


@given(points)
def test_non_dominated_is_what_the_definition_says(points: list[tuple[int, ...]]) -> None:
    def dominates(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
        return a != b and all(x <= y for x, y in zip(a, b, strict=True))

    expected = [not any(dominates(other, point) for other in points) for point in points]
    assert non_dominated(points) == expected
