"""The summary of a run of tests says what the machine lacked."""

import pytest

from tests import hardware


@pytest.mark.parametrize(("precision", "is_fast"), [("fp32", False), ("bf16", True), ("bf16", False)])
def test_a_batch_is_small_where_its_precision_is_slow(
    precision: str, is_fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "has_fast_bf16", lambda: is_fast)
    expected = (8, 32) if precision == "fp32" or is_fast else (2, 16)
    assert hardware.step_shape(precision, 8, 32) == expected
    assert hardware.step_shape(precision, 1, 4) == (1, 4)


def test_what_was_skipped_for_lack_of_hardware_is_counted() -> None:
    def report(reason: str) -> pytest.TestReport:
        longrepr = ("test_x.py", 1, f"Skipped: {reason}")
        return pytest.TestReport("test_x", ("", 1, ""), {}, "skipped", longrepr, "call")

    with pytest.raises(pytest.skip.Exception) as skipped:
        hardware.require(False, "a matrix unit")
    hardware.require(True, "a matrix unit")
    reports = [report(str(skipped.value)), report(str(skipped.value)), report("no PostgreSQL")]
    assert hardware.missing(reports) == {"a matrix unit": 2}
