"""AdapterFusion from end to end: two studies export adapters, a third fuses them, its result loads without them."""

import shutil
from pathlib import Path
from typing import Any

import pytest

import autopeft
from autopeft.errors import AutopeftError
from autopeft.spec.trial import Outcome


def adapter(study: dict[str, Any], folder: Path, name: str, **settings: Any) -> str:
    """Search adapters and export one."""
    space = {"blocks": {"adapter": {"use": True, "size": [4], **settings}}}
    result = autopeft.search(
        **{**study, "space": space, "study_name": name, "n_trials": 1, "yardstick": None, "early_stopping": "off"}
    )
    assert isinstance(result, autopeft.SearchResult)
    (trial,) = (t for t in result.state.trials if t.design.kinds == ("adapter",))
    result.export(trial, folder / name)
    return str(folder / name)


@pytest.mark.slow
def test_two_studies_are_fused_by_a_third(study: dict[str, Any], tmp_path: Path) -> None:
    study = {**study, "budget": {}}
    members = [
        adapter(study, tmp_path, "serial"),
        adapter(study, tmp_path, "parallel", mode="parallel", layers=[[1]]),
    ]
    space = {"blocks": {"fusion": {"adapters": [members, members[:1]], "layers": [[0, 1], [1]], "learning_rate": 1e-3}}}
    asked = {**study, "space": space, "study_name": "fused", "yardstick": None, "early_stopping": "off", "n_trials": 2}
    result = autopeft.search(**asked)
    assert isinstance(result, autopeft.SearchResult)
    fused = [t for t in result.state.trials if t.design.kinds == ("fusion",)]
    assert {t.outcome for t in fused} == {Outcome.COMPLETE}
    assert len({t.design.key for t in fused}) == 2
    assert all("fusion of" in t.describe() and "serial" in t.describe() for t in fused)
    target = tmp_path / "exported"
    result.export(fused[0], target)
    for member in members:
        shutil.rmtree(member)
    model, tokenizer = autopeft.load(target)
    assert model(**tokenizer("good1 word2 bad3", return_tensors="pt")).logits.shape == (1, 2)
    assert autopeft.open(result.state.folder).state == result.state
    with pytest.raises(AutopeftError, match=r"an adapter to fuse must be an exported folder with autopeft\.json"):
        autopeft.search(**{**asked, "study_name": "again"})
