"""The studies of each family are read, fit their model, and run."""

from pathlib import Path

import pytest

from autopeft.models.base import build_meta
from autopeft.spec.cost import Budget
from autopeft.spec.model import Head, ModelSummary
from autopeft.spec.space import SearchSpace
from autopeft.spec.study import load_study

FOLDER = Path(__file__).parents[1] / "studies" / "families"
STUDIES = sorted(FOLDER.glob("*.yaml"))
FAMILIES = ["adapters", "prompts", "quantised", "reparameterised", "selective", "unified"]


@pytest.fixture(scope="module")
def model(minilm: str) -> ModelSummary:
    """Return the summary of the studies' model."""
    head = Head(auto_class="AutoModelForSequenceClassification", labels=("fresh", "rotten"))
    return build_meta(minilm, head).summary


def test_there_is_a_study_for_each_family() -> None:
    assert [path.stem for path in STUDIES] == FAMILIES


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_fits_its_model_and_budget(path: Path, model: ModelSummary) -> None:
    study = load_study(path)
    assert study.study_name == path.stem
    space = SearchSpace.load(study.space) if isinstance(study.space, str) else SearchSpace.from_dict(study.space)
    space.check(model)
    Budget(study.budget).resolve(model)
    kinds = {kind for seed in range(40) for kind in space.sample(model, seed).design.kinds}
    assert kinds == {entry.kind for entry in space.blocks}, "every technique of the family is drawn"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reparameterised", "unified"])
def test_a_study_runs(name: str, minilm: str, tmp_path: Path) -> None:
    import autopeft

    study = load_study(
        FOLDER / f"{name}.yaml",
        ["n_trials=2", "training.epochs=1", "splits={train: 64, validation: 32, test: 32}", f"output_dir={tmp_path}"],
    )
    result = autopeft.search(**study.to_dict() | {"model": minilm})
    assert len(result.front) >= 1
