"""The second half of single techniques x architectures x storages; the first is in test_combinations.py.

A file is what a tier gives to one process: a quarter of a second for each of 1,140 cases here, most of them thorough.
"""

from pathlib import Path

import pytest
from test_combinations import WHOLE, Zoo, check, in_tiers


@pytest.fixture(scope="module")
def zoo(folders: dict[str, str]) -> Zoo:
    return Zoo(folders)


@pytest.mark.parametrize(("name", "architecture", "quantization", "exported"), in_tiers(WHOLE[1::2], 4))
def test_each_technique_on_each_architecture_over_each_quantization(
    zoo: Zoo, tmp_path: Path, name: str, architecture: str, quantization: str, exported: bool
) -> None:
    check(zoo, (name,), architecture, quantization, tmp_path if exported else None)
