"""YAML that is small and means something large, or something other than values."""

from pathlib import Path

import pytest

from autopeft.errors import SpaceError, StudyError
from autopeft.spec.space import SearchSpace
from autopeft.spec.study import load_study, make_study
from autopeft.spec.units import parse_seconds
from autopeft.spec.yaml_file import MAX_BYTES, MAX_DEPTH, read_yaml

LEVELS = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]\n" for i in range(1, 12))
ATTACKS = {
    "aliases to aliases": ("l0: &l0 [x, x]\n" + LEVELS, "every alias written out"),
    "an alias to itself": ("a: &a [*a]", "stands inside of what it names"),
    "deep lists": ("a: " + "[" * 10_000, f"{MAX_DEPTH} levels"),
    "deep mappings": ("a: " + "{a: " * 10_000, f"{MAX_DEPTH} levels"),
    "a long number": ("a: " + "9" * 5000, "cannot be read"),
    "a large file": ("a: " + "x" * MAX_BYTES, "bytes"),
    "an object": ("a: !!python/object/apply:os.system [ls]", "not a known key|cannot be read|may hold"),
    "a date": ("a: 2001-01-01", "may hold"),
    "bytes": ("a: !!binary aGk=", "may hold"),
    "a list as a key": ("? [a, b]\n: 1", "may hold|cannot be read"),
    "a key twice": ("a: 1\na: 2", "duplicate|a key"),
    "two documents": ("a: 1\n---\nb: 2", "document"),
    "control characters": ("a: \x00", "YAML|character|special"),
    "nothing": ("", "top level"),
    "a list": ("- a", "top level"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_it_is_refused_in_words(attack: str, tmp_path: Path) -> None:
    text, message = ATTACKS[attack]
    path = tmp_path / "file.yaml"
    path.write_text(text)
    with pytest.raises(StudyError, match=message):
        load_study(path)
    with pytest.raises(SpaceError):
        SearchSpace.load(str(path))


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_bytes(b"a: \xff\xfe")
    with pytest.raises(StudyError, match="UTF-8"):
        load_study(path)


def test_aliases_and_merges_are_understood() -> None:
    text = "base: &base {a: 1, b: [x, y]}\nmine: {<<: *base, a: 2}\nagain: *base"
    file = read_yaml(text, name="file", error=StudyError)
    assert file.plain()["mine"] == {"a": 2, "b": ["x", "y"]}
    assert file.plain()["again"] == {"a": 1, "b": ["x", "y"]}
    assert file.place("mine.b") == "file, line 2"


@pytest.mark.parametrize("text", ["1s " * 5_000 + "x", "1" + " " * 200_000 + "!", "1" * 200_000, "1.2.3h 5m"])
def test_long_durations_take_no_longer_than_their_text(text: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        parse_seconds(text)


@pytest.mark.parametrize("value", [float("inf"), 10**400, [1], {}, True])
@pytest.mark.parametrize("key", ["timeout", "budget"])
def test_amounts_are_finite_numbers(key: str, value: object) -> None:
    given = {"trainable_params": value} if key == "budget" else value
    with pytest.raises(ValueError, match=key):
        make_study({"model": "bert", "data": "x.csv", key: given})
