import pytest

from autopeft.errors import ExecutorError
from autopeft.executors.versions import check_versions, versions

HERE = {"python": "3.11", "autopeft": "0.1.0", "ray": "2.60.0", "torch": "2.13.0"}


def test_equal_versions_pass() -> None:
    check_versions(HERE, dict(HERE))
    check_versions(versions(), versions())
    assert versions().keys() >= HERE.keys()


@pytest.mark.parametrize(
    ("there", "says"),
    [
        ({"python": "3.12"}, r"here is python 3\.11, and the node 12ab has python 3\.12; install the same"),
        ({"autopeft": "0.2.0"}, r"autopeft 0\.1\.0, and the node 12ab has autopeft 0\.2\.0"),
        ({"ray": "2.61.0", "torch": "2.12.0"}, r"ray 2\.60\.0 and torch 2\.13\.0.*ray 2\.61\.0 and torch 2\.12\.0"),
    ],
)
def test_a_difference_is_refused_and_named(there: dict[str, str], says: str) -> None:
    with pytest.raises(ExecutorError, match=says):
        check_versions(HERE, {**HERE, **there}, node="the node 12ab")


def test_what_the_other_side_does_not_have_is_named() -> None:
    there = {name: version for name, version in HERE.items() if name != "torch"}
    with pytest.raises(ExecutorError, match="torch none"):
        check_versions(HERE, there)
