"""The wall clock jumps: nothing that a search decides by looks at it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LIBRARY = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)


@pytest.mark.slow
@pytest.mark.skipif(LIBRARY is None, reason="needs libfaketime: apt-get install faketime")
def test_a_clock_that_jumps_by_years_changes_nothing(tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    clock.write_text("+0\n")
    environment = {
        **os.environ,
        "LD_PRELOAD": str(LIBRARY),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # a clock that is set moves the wall clock alone
    }
    result = subprocess.run(
        [sys.executable, "-m", "tests.faults.jumping_clock", str(tmp_path / "study")],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.split()[-1]) >= 3, "the clock must have jumped"
