"""Sizes, shares and durations as people write them."""

import pytest

from autopeft.spec import units


@pytest.mark.parametrize(("text", "n"), [("8GiB", 8 * 2**30), ("8 gb", 8 * 10**9), ("1.5 MiB", 1_572_864), (512, 512)])
def test_bytes(text: str | int, n: int) -> None:
    assert units.parse_bytes(text) == n


@pytest.mark.parametrize(("text", "n"), [("1.5M", 1_500_000), ("200k", 200_000), (7, 7), ("1e6", 10**6)])
def test_counts(text: str | int, n: int) -> None:
    assert units.parse_count(text) == n


@pytest.mark.parametrize(("text", "n"), [("2h", 7200), ("90s", 90), ("1h30m", 5400), (45, 45), ("1d 2h 3m 4s", 93_784)])
def test_seconds(text: str | int, n: float) -> None:
    assert units.parse_seconds(text) == n


@pytest.mark.parametrize("text", ["", "8 apples", "-3", "GiB", True, "1h x"])
def test_what_is_no_size_is_refused(text: str) -> None:
    for parse in (units.parse_bytes, units.parse_count, units.parse_seconds):
        with pytest.raises(ValueError, match="must be a number or a text such as"):
            parse(text)


def test_shares() -> None:
    assert units.parse_share("2%") == 0.02
    assert units.parse_share("8GiB") is None
    assert units.parse_share(0.5) is None


@pytest.mark.parametrize(
    ("text", "factor"),
    [("0.9x yardstick", 0.9), ("1.5 X Yardstick", 1.5), (" 2xyardstick ", 2.0), ("1e-1x yardstick", 0.1)],
)
def test_multiples(text: str, factor: float) -> None:
    assert units.parse_multiple(text) == (factor, "yardstick")


@pytest.mark.parametrize("text", ["0.9x", "x yardstick", "0.9 yardstick", "90% of yardstick", "-1x yardstick", 0.9])
def test_what_is_no_multiple(text: str | float) -> None:
    assert units.parse_multiple(text) is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (units.format_bytes(8 * 2**30), "8.0 GiB"),
        (units.format_bytes(512), "512 B"),
        (units.format_count(147_456), "147k"),
        (units.format_count(12), "12"),
        (units.format_seconds(3725), "1h02m"),
        (units.format_seconds(59.6), "1m00s"),
        (units.format_seconds(42), "42s"),
    ],
)
def test_amounts_for_people(text: str, shown: str) -> None:
    assert text == shown
