"""Names that become folders: what every file system takes, in one form."""

import unicodedata

import pytest

from autopeft.errors import AutopeftError, StudyError
from autopeft.spec.location import MAX_STUDY_NAME_BYTES, check_path, check_study_name, working_folder
from autopeft.spec.study import make_study

GOOD = {"model": "bert", "data": "reviews.csv"}


@pytest.mark.parametrize(
    "name", ["reviews", "a", "x" * 100, "études-2", "研究_1", "हिन्दी", "v1.2", "a..b", "console", "com10"]
)
def test_a_name_that_is_a_folder_everywhere(name: str) -> None:
    assert make_study({**GOOD, "study_name": name}).study_name == unicodedata.normalize("NFC", name)
    assert len(check_study_name(name).encode()) <= MAX_STUDY_NAME_BYTES


def test_one_name_written_in_two_ways_is_one_study() -> None:
    ways = [unicodedata.normalize(form, "café-naïve-가") for form in ("NFC", "NFD")]
    assert ways[0] != ways[1]
    first, second = (make_study({**GOOD, "study_name": way}) for way in ways)
    assert first == second
    assert first.folder == second.folder


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("研" * 100, "at most 200 bytes, but this one has 100 letters and 300 bytes"),
        ("😀" * 10, "made of letters"),
        ("x" * 101, "101 letters"),
        ("", "1 to 100 letters"),
        (".", "must not end with"),
        ("..", "must not end with"),
        ("reviews.", "must not end with"),
        ("reviews ", "made of letters"),
        ("a\x00b", "made of letters"),
        ("a\nb", "made of letters"),
        ("a\x7fb", "made of letters"),
        ("a\ud800", "made of letters"),
        ("a\u200bb", "made of letters"),
        ("a/b", "made of letters"),
        ("a\\b", "made of letters"),
        ("CON", "nor be one like CON"),
        ("nul.txt", "nor be one like CON"),
        ("Lpt1", "nor be one like CON"),
    ],
)
def test_a_name_that_is_no_folder_somewhere_is_refused(name: str, message: str) -> None:
    with pytest.raises(AutopeftError, match=message):
        make_study({**GOOD, "study_name": name})


@pytest.mark.parametrize("path", ["runs/" + "x" * 256, "研" * 86 + "/reviews", "a\x00b"])
def test_a_path_that_no_file_system_takes_is_refused(path: str) -> None:
    for check in (check_path, working_folder):
        with pytest.raises(StudyError, match="at most 255 bytes and no NUL"):
            check(path)
    check_path("x" * 255)
